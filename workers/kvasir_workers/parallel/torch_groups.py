"""What we use of torch.distributed: stores to find each other through, and groups that are nobody's global state.

torch exports these without types, some of them under names of its own; nobody else here needs to know them.
"""

from datetime import timedelta
from pathlib import Path
from socket import socket
from typing import Any, Protocol

import torch
import torch.distributed
from torch import Tensor

from kvasir_protocol.errors import RankLost
from kvasir_workers.parallel.mesh import LEADER

_torch: Any = torch.distributed

STORE_PATIENCE_S = 60.0
"""For a gang's store to be reached, and for it to answer."""

_WATCHDOG_S = 60.0
"""And twice our own deadline, after which torch ends a process that waits in NCCL: we say before who did not come."""


class Pending(Protocol):
    """What an operation leaves: wait returns when it is done, or raises RuntimeError."""

    def wait(self) -> object: ...


class Store(Protocol):
    """Keys and values that all ranks of a gang see."""

    def set(self, key: str, value: str) -> None: ...
    def check(self, keys: list[str]) -> bool: ...
    def get(self, key: str) -> bytes: ...


class Group(Protocol):
    """Some ranks, counted from 0 on within the group."""

    def allreduce(self, tensors: list[Tensor], options: Any = ...) -> Pending: ...
    def broadcast(self, tensors: list[Tensor], options: Any) -> Pending: ...
    def gather(self, outputs: list[list[Tensor]], inputs: list[Tensor], options: Any) -> Pending: ...
    def send(self, tensors: list[Tensor], rank: int, tag: int) -> Pending: ...
    def recv(self, tensors: list[Tensor], rank: int, tag: int) -> Pending: ...
    def abort(self) -> None: ...


def memory_store() -> Store:
    """For ranks that are threads of one process."""
    store: Store = _torch.HashStore()
    return store


def file_store(path: str, num_ranks: int) -> Store:
    """For processes of one host; nothing listens. Raises RankLost if its folder, which is the leader's, is gone."""
    folder = Path(path).parent
    if not folder.is_dir():  # torch would look for it for five minutes
        raise RankLost(f"{folder} is gone, and with it the leader of the ranks that were to meet there", (LEADER,))
    store: Store = _torch.FileStore(path, num_ranks)
    return store


def host_store(host: str) -> tuple[Store, int]:
    """For processes anywhere: it listens on the host's address, and on no other, at the port returned."""
    listener = socket()
    listener.bind((host, 0))
    listener.listen()
    port: int = listener.getsockname()[1]
    store: Store = _torch.TCPStore(
        host,
        port,
        is_master=True,
        timeout=timedelta(seconds=STORE_PATIENCE_S),
        wait_for_workers=False,
        master_listen_fd=listener.detach(),
    )
    return store, port


def join_store(host: str, port: int, patience_s: float = STORE_PATIENCE_S) -> Store:
    """Somebody's host_store. patience_s: to reach it, and for each of its answers. Raises RuntimeError after that."""
    store: Store = _torch.TCPStore(host, port, is_master=False, timeout=timedelta(seconds=patience_s))
    return store


def open_group(
    name: str, ranks: range, rank: int, store: Store, host: str, deadline_s: float, device: torch.device
) -> Group:
    """NCCL between GPUs, gloo between CPUs. host: this rank's own address; deadline_s: for any one operation of gloo's.
    NCCL's wait on the device only: whoever waits for that must have a deadline.

    Waits for all others. Raises RuntimeError if one does not come.
    """
    own_store = _torch.PrefixStore(f"{name}-{ranks.start}", store)
    deadline, size, index = timedelta(seconds=deadline_s), len(ranks), ranks.index(rank)
    if device.type == "cuda":
        options = _torch.ProcessGroupNCCL.Options()
        options._timeout = 2 * deadline + timedelta(seconds=_WATCHDOG_S)
        nccl: Group = _torch.ProcessGroupNCCL(own_store, index, size, options)
        return nccl
    options = _torch.ProcessGroupGloo._Options()
    options._timeout = deadline
    options._devices = [_torch.ProcessGroupGloo.create_device(hostname=host)]
    gloo: Group = _torch.ProcessGroupGloo(own_store, index, size, options)
    return gloo


def abandon(group: Group, device: torch.device) -> None:
    """End what waits in it: NCCL's kernels do so until they are told; gloo's connections break when nobody has them."""
    if device.type == "cuda":
        group.abort()


def from_first() -> Any:
    """Options of a broadcast."""
    options = _torch.BroadcastOptions()
    options.rootRank, options.rootTensor = 0, 0
    return options


def to_first() -> Any:
    """Options of a gather."""
    options = _torch.GatherOptions()
    options.rootRank = 0
    return options


def smallest() -> Any:
    """Options of an all-reduce."""
    options = _torch.AllreduceOptions()
    options.reduceOp = _torch.ReduceOp.MIN
    return options
