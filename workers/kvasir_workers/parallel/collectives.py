"""How the ranks of a gang reach each other: gloo between CPUs, NCCL between GPUs, and a deadline on everything.

What is small goes another way within a stage: between CPUs of one host through memory that they share, and sums of
GPUs of one host through memory that they map of each other.

Groups are objects of their own, not torch's global one: a process may have several gangs, or (in tests) several ranks.
"""

import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor

from kvasir_protocol.errors import RankLost
from kvasir_workers.parallel.cuda_peers import CudaPeers
from kvasir_workers.parallel.device_deadline import DeviceEvent, DeviceSteps, wait_for_device
from kvasir_workers.parallel.mesh import RankPlace
from kvasir_workers.parallel.peer_board import BoardSeat, PeerBoard, open_peer_board
from kvasir_workers.parallel.roll_call import RollCall
from kvasir_workers.parallel.shared_board import SharedBoard, open_board
from kvasir_workers.parallel.torch_groups import (
    Group,
    Pending,
    Store,
    abandon,
    from_first,
    open_group,
    smallest,
    to_first,
)

T = TypeVar("T")

_ALL, _STAGE = "all", "stage"

_DEVICE_STEP = "a step on the device"


@dataclass(frozen=True, slots=True, kw_only=True)
class Meeting:
    """Where the ranks of one gang meet. host: this rank's own address, at which the others reach it.

    store: of this gang alone. deadline_s: for any one operation. start_s: for all ranks to come at all; abandoned says
    meanwhile why it would be in vain.
    """

    store: Store
    host: str = "127.0.0.1"
    deadline_s: float = 30.0
    start_s: float = 900.0
    abandoned: Callable[[], str | None] = lambda: None


class Collectives:
    """One rank's operations. Every rank of the stage (or of the gang) takes part in each, in the same order.

    Raises RankLost, which says who did not come, when one does not end in time; it is of no use any more then.
    """

    def __init__(self, place: RankPlace, meeting: Meeting, device: torch.device) -> None:
        """Waits for all others. device: where the tensors are that travel."""
        self.place = place
        self._device = device
        self._groups: dict[str, Group] = {}
        self._board: SharedBoard | None = None
        self._peers: PeerBoard | None = None
        self._sending: deque[tuple[Pending, Tensor, int]] = deque()
        self._roll_call = RollCall(meeting.store, place, meeting.deadline_s)
        self._meeting = meeting
        self._steps = DeviceSteps()
        self.muster("met")
        for name, ranks in ((_ALL, range(place.shape.num_ranks)), (_STAGE, place.stage_ranks)):
            if len(ranks) > 1:
                self._open(name, ranks)
        self._board = self._open_board()
        self._peers = self._open_peer_board()

    def muster(self, what: str) -> None:
        """Wait until every rank of the gang has come so far, for as long as a start may take."""
        self._roll_call.muster(what, self._meeting.start_s, self._meeting.abandoned)

    def _open(self, name: str, ranks: range) -> None:
        meeting = self._meeting
        self._groups[name] = self._guard(
            "opening connections",
            lambda: open_group(
                name, ranks, self.place.rank, meeting.store, meeting.host, meeting.deadline_s, self._device
            ),
        )

    def _open_board(self) -> SharedBoard | None:
        if _STAGE not in self._groups or self._device.type != "cpu":
            return None
        place, meeting = self.place, self._meeting
        name = f"board-{place.stage_ranks.start}"
        num_ranks = place.shape.tensor_parallel_size
        return self._guard(
            "opening shared memory",
            lambda: open_board(name, place.tensor_rank, num_ranks, meeting.store, meeting.deadline_s),
        )

    def _open_peer_board(self) -> PeerBoard | None:
        if _STAGE not in self._groups or self._device.type != "cuda":
            return None
        place, meeting = self.place, self._meeting
        num_ranks = place.shape.tensor_parallel_size
        seat = BoardSeat(
            name=f"peers-{place.stage_ranks.start}", index=place.tensor_rank, num_ranks=num_ranks, store=meeting.store
        )
        device = CudaPeers(num_ranks, self._device, meeting.deadline_s, self._add_up_by_group)
        return self._guard("opening each other's memory", lambda: open_peer_board(seat, device))

    def _board_for(self, tensor: Tensor) -> SharedBoard | None:
        """The shared memory, if this goes through it: at all ranks, whose tensors are of one size."""
        return self._board if self._board is not None and SharedBoard.takes(tensor) else None

    def add_up(self, tensor: Tensor) -> Tensor:
        """The sum over the stage, in place."""
        if (board := self._board_for(tensor)) is not None:
            self._guard("an all-reduce", lambda: board.add_up(tensor))
        elif (peers := self._peers) is not None and peers.takes(tensor):
            self._guard("an all-reduce", lambda: peers.add_up(tensor))
        elif _STAGE in self._groups:
            self._add_up_by_group(tensor)
        return tensor

    def _add_up_by_group(self, tensor: Tensor) -> None:
        self._finish("an all-reduce", lambda: self._groups[_STAGE].allreduce([tensor]))

    def spread(self, tensor: Tensor) -> Tensor:
        """What the stage's first rank has there, in place."""
        if (board := self._board_for(tensor)) is not None:
            self._guard("a broadcast", lambda: board.spread(tensor))
        elif _STAGE in self._groups:
            self._finish("a broadcast", lambda: self._groups[_STAGE].broadcast([tensor], from_first()))
        return tensor

    def collect(self, tensor: Tensor) -> list[Tensor]:
        """At the stage's first rank what each has there, all of one shape; nothing at the others."""
        if _STAGE not in self._groups:
            return [tensor]
        if (board := self._board_for(tensor)) is not None:
            return self._guard("a gather", lambda: board.collect(tensor))
        parts = [torch.empty_like(tensor) for _ in self.place.stage_ranks] if self.place.tensor_rank == 0 else []
        outputs = [parts] if parts else []
        self._finish("a gather", lambda: self._groups[_STAGE].gather(outputs, [tensor], to_first()))
        return parts

    def exchange(self, what: str, word: str) -> list[str]:
        """What each rank of the gang says under this name, by rank; it is used once. Nothing waits on a device."""
        return self._roll_call.exchange(what, word, self._meeting.start_s, self._meeting.abandoned)

    def least(self, number: int) -> int:
        """The smallest number that any rank of the gang has."""
        if _ALL not in self._groups:
            return number
        tensor = torch.tensor([number], dtype=torch.int64, device=self._device)
        self._finish("an all-reduce", lambda: self._groups[_ALL].allreduce([tensor], smallest()))
        self.finish("an all-reduce")
        return int(tensor.item())

    def send(self, tensor: Tensor, rank: int) -> None:
        """Begin to send; the tensor is not to be changed any more. No more are on their way than there are stages."""
        while len(self._sending) >= self.place.shape.pipeline_parallel_size:
            pending, _, receiver = self._sending.popleft()
            self._guard(f"sending to rank {receiver}", pending.wait, [receiver])
        tensor = tensor.contiguous()
        begun = self._guard(f"sending to rank {rank}", lambda: self._groups[_ALL].send([tensor], rank, 0), [rank])
        self._sending.append((begun, tensor, rank))

    def receive(self, tensor: Tensor, rank: int) -> Tensor:
        """What the rank sent, in the order in which it did, in place."""
        self._finish(f"receiving from rank {rank}", lambda: self._groups[_ALL].recv([tensor], rank, 0), [rank])
        return tensor

    def wait_for(self, event: DeviceEvent, what: str = _DEVICE_STEP) -> None:
        """Until the device has come to the event: there a GPU's rank sees that another does not come."""
        self._guard(what, lambda: wait_for_device(event, self._meeting.deadline_s))

    def finish(self, what: str) -> None:
        """Until the device has done all that it was told; a CPU has done so already."""
        if self._device.type == "cuda":
            self.wait_for(self._mark(), what)

    def watch_step(self) -> None:
        """From now on `look` sees whether the device comes to the end of what it was told so far."""
        if self._device.type == "cuda":
            self.watch(self._mark())

    def watch(self, end: DeviceEvent) -> None:
        """The same of a step that is over at this event."""
        self._steps.begin(end)

    def look(self) -> None:
        """Raise RankLost if the device has been at one step for longer than the deadline."""
        if (waited_s := self._steps.waited_s()) > self._meeting.deadline_s:
            raise self._lost(_DEVICE_STEP, waited_s, (), "the device still waits")

    def _mark(self) -> torch.cuda.Event:
        event = torch.cuda.Event()  # type: ignore[no-untyped-call]
        event.record()
        return event

    def close(self) -> None:
        """Let go of the others: those who wait for this rank hear of it at once."""
        if self._board is not None:
            self._board.leave()
            self._board = None
        if self._peers is not None:
            self._peers.leave()
            self._peers = None
        for group in self._groups.values():
            abandon(group, self._device)
        self._sending.clear()
        self._groups.clear()

    def _finish(self, what: str, begin: Callable[[], Pending], peers: Sequence[int] = ()) -> None:
        self._guard(what, lambda: begin().wait(), peers)

    def _guard(self, what: str, act: Callable[[], T], peers: Sequence[int] = ()) -> T:
        started_at = time.monotonic()
        try:
            return act()
        except RuntimeError as error:
            failure = str(error)
        raise self._lost(what, time.monotonic() - started_at, peers, failure)

    def _lost(self, what: str, waited_s: float, peers: Sequence[int], failure: str) -> RankLost:
        # First: who waits for this rank is to sign the list, too. Nothing else may refer to the groups by now, not even
        # the traceback of the error.
        self.close()
        return self._roll_call.explain(what, waited_s, peers, failure)
