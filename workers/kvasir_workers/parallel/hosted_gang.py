"""A gang whose ranks were put on any hosts by somebody else: they meet at an address that the leader announces.

Plans go over ZeroMQ with the cluster's keys. The store through which gloo and NCCL find each other, and what these
send, are plain TCP, as in every torch program: keep them in a network of your own.
"""

import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from threading import Event
from typing import Any

import zmq

from kvasir_protocol.config import ReplicaConfig, build
from kvasir_protocol.errors import RankLost
from kvasir_protocol.sockets import bind_server, connect_client, start_gatekeeper
from kvasir_protocol.wire import to_plain
from kvasir_workers.load import LeaderSeat
from kvasir_workers.parallel.collectives import Meeting
from kvasir_workers.parallel.mesh import GangShape
from kvasir_workers.parallel.torch_groups import host_store

_POLL_MS = 100


@dataclass(frozen=True, slots=True, kw_only=True)
class GangAddress:
    """Where a leader is to be found: the store's host and port, and where it sends plans from."""

    host: str
    port: int
    plans: str

    def to_text(self) -> str:
        return json.dumps(to_plain(self))

    @classmethod
    def from_text(cls, text: str) -> "GangAddress":
        return build(cls, json.loads(text))


def shape_of(config: ReplicaConfig) -> GangShape:
    return GangShape(
        tensor_parallel_size=config.tensor_parallel_size, pipeline_parallel_size=config.pipeline_parallel_size
    )


class PublicSender:
    """Plans to followers that have connected to a ROUTER and said who they are."""

    def __init__(self, socket: Any, num_ranks: int, start_s: float) -> None:
        self._socket = socket
        self._names = {rank: name_of(rank) for rank in range(1, num_ranks)}
        self._absent = set(self._names.values())
        self._start_s = start_s

    def send(self, frame: bytes) -> None:
        if self._absent:
            self._meet()
        for rank, name in self._names.items():
            try:
                self._socket.send_multipart([name, frame], zmq.NOBLOCK)
            except zmq.ZMQError as error:
                raise RankLost(f"rank {rank} takes no more plans: {error.strerror}", (rank,)) from None

    def _meet(self) -> None:
        """Until every follower has connected: a ROUTER sends to nobody whom it does not know."""
        give_up_at = time.monotonic() + self._start_s
        while self._absent and time.monotonic() < give_up_at:
            if self._socket.poll(_POLL_MS):
                self._absent.discard(self._socket.recv_multipart()[0])
        if self._absent:
            ranks = tuple(rank for rank, name in self._names.items() if name in self._absent)
            raise RankLost(f"ranks {ranks} did not connect to their leader", ranks)

    def close(self) -> None:
        self._socket.close()


class HostedGang:
    """The leader's side. announce is told where followers find it."""

    def __init__(self, config: ReplicaConfig, secret: bytes, announce: Callable[[str], None]) -> None:
        shape, deadline_s = shape_of(config), config.engine.rank_deadline_s
        store, port = host_store(config.host)
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._gatekeeper = start_gatekeeper(self._context, secret)
        socket, endpoint = bind_server(self._context, secret, config.host, 0)
        self.seat = LeaderSeat(
            shape,
            Meeting(store=store, host=config.host, deadline_s=deadline_s),
            PublicSender(socket, shape.num_ranks, deadline_s),
        )
        announce(GangAddress(host=config.host, port=port, plans=endpoint).to_text())

    def find_death(self) -> str | None:
        """Whoever put the ranks there watches them."""
        return None

    def close(self) -> None:
        """The followers are ended by whoever put them there."""
        if not self._context.closed:
            self.seat.followers.close()
            self._gatekeeper.stop()
            self._context.destroy(linger=0)


class PublicReceiver:
    """A follower's side of the plans. is_stopping ends the wait for the next."""

    def __init__(self, address: GangAddress, secret: bytes, rank: int, is_stopping: Event) -> None:
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._is_stopping = is_stopping
        self._socket = connect_client(self._context, secret, address.plans, name_of(rank))
        self._socket.send(b"")

    def receive(self) -> bytes | None:
        while not self._is_stopping.is_set():
            if self._socket.poll(_POLL_MS):
                frame: bytes = self._socket.recv()
                return frame
        return None

    def close(self) -> None:
        self._context.destroy(linger=0)


def name_of(rank: int) -> bytes:
    return b"rank-%d" % rank
