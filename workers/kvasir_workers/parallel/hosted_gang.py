"""A gang whose ranks were put on any hosts by somebody else: they meet at an address that the leader announces.

Plans go over ZeroMQ with the cluster's keys, and pages of ranks on other hosts over sockets with keys that came that
way. The store through which gloo and NCCL find each other, and what these send, are plain TCP, as in every torch
program: keep them in a network of your own.
"""

import json
import logging
import secrets
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from threading import Event
from typing import Any

import zmq

from kvasir_protocol.config import ReplicaConfig
from kvasir_protocol.config_tree import build
from kvasir_protocol.errors import RankLost, WireError
from kvasir_protocol.messages import PageDoor
from kvasir_protocol.sockets import bind_server, connect_client, start_gatekeeper
from kvasir_protocol.wire import decode, encode, to_plain
from kvasir_workers.idle_work import IdleWork, nothing_to_do
from kvasir_workers.load import LeaderSeat
from kvasir_workers.parallel.collectives import Meeting
from kvasir_workers.parallel.links import nowhere
from kvasir_workers.parallel.mesh import GangShape
from kvasir_workers.parallel.torch_groups import host_store

_log = logging.getLogger(__name__)

_POLL_MS = 100


@dataclass(frozen=True, slots=True, kw_only=True)
class GangAddress:
    """Where a leader is to be found: the store's host and port, and where it sends plans from.

    gang: a name that is given once. The address that plans come from may be another gang's later, and whoever still
    looks for this one there must not be taken for one of that. segment_name: as in LocalGang; a rank on another host
    makes its own there, which nobody else maps.
    """

    host: str
    port: int
    plans: str
    gang: str
    segment_name: str

    def to_text(self) -> str:
        return json.dumps(to_plain(self))

    @classmethod
    def from_text(cls, text: str) -> "GangAddress":
        return build(cls, json.loads(text))


class PublicSender:
    """Plans to followers that have connected to a ROUTER and said who they are, and where their pages are kept."""

    def __init__(self, socket: Any, gang: str, num_ranks: int, start_s: float) -> None:
        self._socket = socket
        self._ranks = {name_of(gang, rank): rank for rank in range(1, num_ranks)}
        self._doors: dict[int, PageDoor] = {}
        self._start_s = start_s

    def doors(self) -> Mapping[int, PageDoor]:
        """By rank. Waits for all followers; raises RankLost if one does not come."""
        self._meet()
        return self._doors

    def send(self, frame: bytes) -> None:
        self._meet()
        for name, rank in self._ranks.items():
            try:
                self._socket.send_multipart([name, frame], zmq.NOBLOCK)
            except zmq.ZMQError as error:
                raise RankLost(f"rank {rank} takes no more plans: {error.strerror}", (rank,)) from None

    def _meet(self) -> None:
        """Until every follower has connected: a ROUTER sends to nobody whom it does not know."""
        give_up_at = time.monotonic() + self._start_s
        while len(self._doors) < len(self._ranks) and time.monotonic() < give_up_at:
            if self._socket.poll(_POLL_MS):
                name, *frames = self._socket.recv_multipart()
                self._welcome(name, b"".join(frames))
        if absent := tuple(rank for rank in self._ranks.values() if rank not in self._doors):
            raise RankLost(f"ranks {absent} did not connect to their leader", absent)

    def _welcome(self, name: bytes, frame: bytes) -> None:
        """Take in a follower. Whoever looks for those who had this address before may come, too: it is no matter."""
        try:
            door = decode(frame)
            if name not in self._ranks or not isinstance(door, PageDoor):
                raise WireError(f"{type(door).__name__} from {name!r}")
        except WireError as error:
            _log.warning("no follower that says where its pages are; dropped: %s", error)
            return
        self._doors[self._ranks[name]] = door

    def close(self) -> None:
        self._socket.close()


class HostedGang:
    """The leader's side. announce is told where followers find it. segment_name: as in LocalGang."""

    def __init__(
        self, config: ReplicaConfig, secret: bytes, announce: Callable[[str], None], segment_name: str
    ) -> None:
        shape, deadline_s = GangShape.of(config), config.engine.rank_deadline_s
        store, port = host_store(config.host)
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._gatekeeper = start_gatekeeper(self._context, secret)
        socket, endpoint = bind_server(self._context, secret, config.host, 0)
        gang = secrets.token_hex(8)
        followers = PublicSender(socket, gang, shape.num_ranks, deadline_s)
        meeting = Meeting(store=store, host=config.host, deadline_s=deadline_s)
        self.seat = LeaderSeat(shape, meeting, followers, segment_name, followers.doors)
        address = GangAddress(host=config.host, port=port, plans=endpoint, gang=gang, segment_name=segment_name)
        announce(address.to_text())

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
    """A follower's side of the plans. is_stopping ends the wait for the next. door: where its pages are kept."""

    def __init__(self, address: GangAddress, secret: bytes, rank: int, door: PageDoor, is_stopping: Event) -> None:
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._is_stopping = is_stopping
        self._socket = connect_client(self._context, secret, address.plans, name_of(address.gang, rank))
        self._socket.send(encode(door))

    def receive(self, look: Callable[[], None] = nowhere, idle_work: IdleWork = nothing_to_do) -> bytes | None:
        wait_ms = _POLL_MS
        while not self._is_stopping.is_set():
            if self._socket.poll(wait_ms):
                frame: bytes = self._socket.recv()
                return frame
            look()
            wait_ms = 0 if idle_work() else _POLL_MS
        return None

    def close(self) -> None:
        self._context.destroy(linger=0)


def name_of(gang: str, rank: int) -> bytes:
    """What a follower calls itself where plans come from."""
    return f"{gang}-rank{rank}".encode()
