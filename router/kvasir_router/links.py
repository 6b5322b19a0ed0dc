"""One router's line to one replica: greets it, asks how it fares, hands what it says to the streams that wait."""

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from typing import Any, Protocol, cast

import zmq
import zmq.asyncio
from zmq.utils.monitor import recv_monitor_message

from kvasir_protocol import wire
from kvasir_protocol.errors import WireError
from kvasir_protocol.events import ReplicaStats, TokenOutput
from kvasir_protocol.ids import ReplicaId, RequestId
from kvasir_protocol.messages import (
    HandoverFailed,
    Hello,
    Message,
    Ping,
    Rejected,
    Reserved,
    ReserveRefused,
    Stats,
    Tokens,
    Welcome,
)
from kvasir_protocol.sockets import connect_client
from kvasir_protocol.view import ReplicaAddress, ReplicaInfo
from kvasir_router.mailbox import Mailbox
from kvasir_router.routing.rates import RateMeter

logger = logging.getLogger(__name__)

MAX_UNANSWERED_PINGS = 6
"""3 s of silence at two pings a second. Pings are counted, not seconds, so that a stall of this process is not taken
for the replica's."""

RETRY_PAUSE_S = 0.1
"""Between the end of a connection and the next try; libzmq itself waits longer for a port where nobody listens."""


@dataclass(frozen=True, slots=True)
class LinkLost:
    """The connection to a replica has ended; whatever the replica held for this router is gone."""

    reason: str


Arrival = TokenOutput | Rejected | Reserved | ReserveRefused | HandoverFailed | LinkLost

Arrivals = Mailbox[tuple[ReplicaId, Arrival]]
"""What the replicas of one stream say."""


class Inbox(Protocol):
    """Takes what a replica says of one stream."""

    def put(self, item: tuple[ReplicaId, Arrival]) -> None: ...


@dataclass(frozen=True, slots=True)
class LinkSettings:
    """How links reach replicas. sender is the name that this router gives itself."""

    context: zmq.asyncio.Context
    secret: bytes
    sender: str
    ping_interval_s: float


class ReplicaLink:
    """Keeps one replica connected for as long as it is open.

    Every connection has a socket of its own, so that nothing queued for a replica reaches its successor.

        greeting --Welcome--> up --closed or silent--> greeting (a new socket) …

    is_up: may take requests. info and stats are the latest heard; meter has seen all stats. on_change is called when
    is_up changes.
    """

    def __init__(self, address: ReplicaAddress, settings: LinkSettings, on_change: Callable[[], None]) -> None:
        self.address = address
        self.info: ReplicaInfo | None = None
        self.stats: ReplicaStats | None = None
        self.meter = RateMeter(time.monotonic)
        self.is_up = False
        self.num_bad_frames = 0
        self._settings = settings
        self._on_change = on_change
        self._socket: zmq.asyncio.Socket | None = None
        self._mailboxes: dict[RequestId, Inbox] = {}
        self._unanswered_pings = 0
        self._task = asyncio.create_task(self._run(), name=f"link to {address.replica_id}")

    @property
    def replica_id(self) -> ReplicaId:
        return self.address.replica_id

    @property
    def num_streams(self) -> int:
        return len(self._mailboxes)

    def attach(self, request_id: RequestId, mailbox: Inbox) -> None:
        """Deliver what the replica says of request_id; a LinkLost at once if it is down."""
        if self.is_up:
            self._mailboxes[request_id] = mailbox
        else:
            mailbox.put((self.replica_id, LinkLost("is not connected")))

    def detach(self, request_id: RequestId) -> None:
        self._mailboxes.pop(request_id, None)

    def send(self, message: Message) -> None:
        """Queue a message; dropped if the replica is down (its streams have been told so)."""
        if self.is_up:
            self._say(message)

    def _say(self, message: Message) -> None:
        if self._socket is None:
            return
        # With DONTWAIT the future is done when it is returned.
        sent = cast(asyncio.Future[None], self._socket.send(wire.encode(message), zmq.DONTWAIT))
        if (error := sent.exception()) is not None:
            logger.warning("%s: %s dropped: %s", self.replica_id, type(message).__name__, error)

    async def close(self) -> None:
        self._task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self._task

    async def _run(self) -> None:
        reason = "the link was closed"
        try:
            while True:
                former, reason = reason, await self._keep_one_connection()
                if self.is_up or reason != former:
                    logger.warning("%s is down with %d streams: %s", self.replica_id, self.num_streams, reason)
                self._lose_streams(reason)
                await asyncio.sleep(RETRY_PAUSE_S)
        finally:
            self._lose_streams(reason)

    async def _keep_one_connection(self) -> str:
        """Returns why the connection ended."""
        try:
            socket = connect_client(self._settings.context, self._settings.secret, self.address.endpoint)
        except zmq.ZMQError as error:
            return f"can't connect to {self.address.endpoint}: {error.strerror}"
        monitor = socket.get_monitor_socket(zmq.Event.HANDSHAKE_FAILED_AUTH | zmq.Event.DISCONNECTED)
        try:
            self._socket = socket
            self._unanswered_pings = 0
            self._say(Hello(sender=self._settings.sender))
            return await _first_result(self._watch(monitor), self._receive(socket), self._ping())
        finally:
            self._socket = None
            socket.disable_monitor()
            monitor.close(linger=0)
            socket.close(linger=0)

    async def _watch(self, monitor: zmq.asyncio.Socket) -> str:
        """Returns when a connection that was open closes. A port where nobody listens yet is no event."""
        event = (await recv_monitor_message(monitor))["event"]
        if event == zmq.Event.HANDSHAKE_FAILED_AUTH:
            return "it refuses our key; give this router and the replica the same cluster secret"
        return "the replica closed the connection"

    async def _ping(self) -> str:
        while self._unanswered_pings < MAX_UNANSWERED_PINGS:
            self._unanswered_pings += 1
            self._say(Ping())
            await asyncio.sleep(self._settings.ping_interval_s)
        return f"the replica left {MAX_UNANSWERED_PINGS} pings unanswered"

    async def _receive(self, socket: zmq.asyncio.Socket) -> str:
        while True:
            frames = await socket.recv_multipart()
            self._unanswered_pings = 0
            try:
                if len(frames) != 1:
                    raise WireError(f"a message has one frame, got {len(frames)}")
                self._deliver(wire.decode(frames[0]))
            except WireError as error:
                self.num_bad_frames += 1
                logger.warning("%s: message dropped: %s", self.replica_id, error)
            except Exception:
                # Our mistake. Streams that miss what it said find a gap or silence, and go on elsewhere.
                self.num_bad_frames += 1
                logger.exception("%s: message dropped", self.replica_id)

    def _deliver(self, message: Message) -> None:
        match message:
            case Tokens():
                for output in message.outputs:
                    self._put(output.request_id, output)
            case Stats():
                self.stats = message.stats
                self.meter.note(message.stats)
            case Rejected() | Reserved() | ReserveRefused() | HandoverFailed():
                self._put(message.request_id, message)
            case Welcome():
                self._welcome(message.info)
            case _:
                raise WireError(f"a replica does not send {type(message).__name__} to a router")

    def _put(self, request_id: RequestId, arrival: Arrival) -> None:
        """Late words of a stream that has gone elsewhere find no mailbox and are dropped."""
        mailbox = self._mailboxes.get(request_id)
        if mailbox is not None:
            mailbox.put((self.replica_id, arrival))

    def _welcome(self, info: ReplicaInfo) -> None:
        logger.info("%s is up: %s, %d pages", self.replica_id, self.address.endpoint, info.num_pages)
        self.info = info
        self.is_up = True
        self._on_change()

    def _lose_streams(self, reason: str) -> None:
        self.is_up = False
        self.stats = None
        mailboxes, self._mailboxes = self._mailboxes, {}
        for mailbox in mailboxes.values():
            mailbox.put((self.replica_id, LinkLost(reason)))
        self._on_change()


async def _first_result(*coroutines: Coroutine[Any, Any, str]) -> str:
    """Run all side by side; the result of the first to end, after the others were cancelled."""
    tasks = [asyncio.ensure_future(coroutine) for coroutine in coroutines]
    try:
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        return done.pop().result()
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
