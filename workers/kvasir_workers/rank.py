"""A follower: a process with one rank of a gang, which computes what its leader plans and decides nothing itself.

`python -m kvasir_workers.rank DESCRIPTOR` is how a leader starts one on its own host; DESCRIPTOR is a connected socket
that it inherits. The first frame there are its orders, each later one a message of the leader's. It ends with the
leader, however that ends.
"""

import json
import os
import sys
from dataclasses import dataclass
from socket import socket

import torch

from kvasir_protocol.config import EngineConfig, ModelConfig
from kvasir_protocol.config_tree import build
from kvasir_protocol.errors import KvasirError
from kvasir_protocol.wire import to_plain
from kvasir_workers.kv.page_mapping import mapping_of
from kvasir_workers.parallel.collectives import Meeting
from kvasir_workers.parallel.gang_runner import Follower
from kvasir_workers.parallel.links import SocketReceiver
from kvasir_workers.parallel.load_rank import load_rank, plan_rank
from kvasir_workers.parallel.mesh import GangShape, RankPlace
from kvasir_workers.parallel.rank_graphs import make_rank_ready
from kvasir_workers.parallel.torch_groups import file_store


@dataclass(frozen=True, slots=True, kw_only=True)
class RankOrders:
    """Who a follower is, what it loads, and the file through which its gang meets. segment: for its pages, or ""."""

    model: ModelConfig
    engine: EngineConfig
    shape: GangShape
    rank: int
    store: str
    segment: str


def to_frame(orders: RankOrders) -> bytes:
    return json.dumps(to_plain(orders)).encode()


def from_frame(frame: bytes) -> RankOrders:
    """Raises ConfigError if it is something else."""
    return build(RankOrders, json.loads(frame))


def serve(orders: RankOrders, leader: SocketReceiver) -> None:
    """Load, then follow until the leader is gone. Raises KvasirError."""
    if orders.engine.num_threads is not None:
        torch.set_num_threads(orders.engine.num_threads)
    meeting = Meeting(
        store=file_store(orders.store, orders.shape.num_ranks),
        deadline_s=orders.engine.rank_deadline_s,
        abandoned=lambda: "the leader is gone" if leader.is_over() else None,
    )
    plan = plan_rank(orders.model, orders.engine, RankPlace(orders.shape, orders.rank))
    loaded = load_rank(plan, meeting, orders.segment)
    try:
        graphs = make_rank_ready(loaded.stage, orders.engine, loaded.memory.max_sequence_tokens)
        Follower(loaded.stage, graphs, idle_work=mapping_of(loaded.segment)).serve(leader)
    finally:
        loaded.stage.close()
        if loaded.segment is not None:
            loaded.segment.remove()


def main() -> int:
    """Serve one rank until its leader is gone."""
    leader = SocketReceiver(socket(fileno=int(sys.argv[1])))
    frame = leader.receive()
    if frame is None:
        return 0
    orders = from_frame(frame)
    try:
        serve(orders, leader)
    except KvasirError as error:
        if leader.is_over():
            return 0
        print(f"rank {orders.rank}: error: {error}", file=sys.stderr, flush=True)
        return 1
    return 0


if __name__ == "__main__":
    os._exit(main())  # nothing is left to be saved, and an interpreter that holds torch is slow to end
