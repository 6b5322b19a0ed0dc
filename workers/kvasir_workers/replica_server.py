"""A replica's data plane: one thread, one socket, all messages of routers and of other replicas."""

import logging
import socket as os_socket
import time
from collections import defaultdict
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from functools import partial

import zmq

from kvasir_protocol.errors import InvalidRequest, ServiceUnavailable, WireError
from kvasir_protocol.events import HandoverCounters, ReplicaStats, TokenOutput
from kvasir_protocol.ids import RequestId
from kvasir_protocol.messages import (
    Abort,
    BeginPush,
    Commit,
    HandOver,
    HandoverFailed,
    HandoverTicket,
    Hello,
    Message,
    PageSegment,
    Ping,
    PushPages,
    Quiet,
    Rejected,
    Reserve,
    Reserved,
    ReserveRefused,
    Stats,
    Submit,
    Welcome,
)
from kvasir_protocol.request import GenerationRequest
from kvasir_protocol.view import ReplicaInfo
from kvasir_protocol.wire import decode, encode
from kvasir_workers.engine import Engine
from kvasir_workers.engine_loop import EngineLoop
from kvasir_workers.grammar.compiler import GrammarCompiler, grammar_in
from kvasir_workers.grammar.state import Grammar
from kvasir_workers.idle_work import IdleWork, nothing_to_do
from kvasir_workers.kv.transfer.departures import Departures
from kvasir_workers.kv.transfer.group_intake import GroupIntake
from kvasir_workers.kv.transfer.importer import PageImporter
from kvasir_workers.kv.transfer.page_intake import PageIntake
from kvasir_workers.kv.transfer.page_parts import PartedPages
from kvasir_workers.kv.transfer.reservation import Peer
from kvasir_workers.resident_memory import resident_bytes
from kvasir_workers.sequence import Sequence
from kvasir_workers.socket_thread import Rounds, SocketThread
from kvasir_workers.token_frames import frames_of, too_large_error

_log = logging.getLogger(__name__)

_POLL_MS = 100
"""How often deadlines are looked at when nothing arrives."""

_NO_HANDOVER = "this replica hands no pages over: its ranks do not reach them all, or they are int8"


class EngineDesk:
    """The importer's way back to the engine: commands for its thread."""

    def __init__(self, loop: EngineLoop) -> None:
        self._loop = loop

    def start_reserved(self, sequence: Sequence, emitted_token_ids: tuple[int, ...]) -> None:
        self._loop.post(lambda engine: engine.start_reserved(sequence, emitted_token_ids))

    def release_reserved(self, sequence: Sequence) -> None:
        self._loop.post(lambda engine: engine.release_reserved(sequence))


@dataclass(frozen=True, slots=True, kw_only=True)
class Binding:
    """Bound sockets, of words and of page contents. segments: the shared memory that the pages lie in, if they do.

    host: its own address. is_sealed: contents must be encrypted.
    """

    context: zmq.Context[zmq.Socket[bytes]]
    socket: zmq.Socket[bytes]
    endpoint: str
    page_listener: os_socket.socket
    page_endpoint: str
    segments: tuple[PageSegment, ...]
    host: str = "127.0.0.1"
    is_sealed: bool = True


class ReplicaServer:
    """Answers messages on a bound socket until stopped; owns the binding from `start` on."""

    def __init__(
        self,
        binding: Binding,
        info: ReplicaInfo,
        engine: Engine,
        pages: PartedPages,
        departures: Departures,
        grammars: GrammarCompiler | None = None,
        *,
        hands_over: bool = True,
        idle_work: IdleWork = nothing_to_do,
    ) -> None:
        """departures: the engine's. grammars: without it, structured requests are refused. hands_over: pages may come
        and leave. idle_work: as in EngineLoop."""
        self._grammars = grammars
        self._hands_over = hands_over
        self._departures = departures
        self._socket = binding.socket
        self._endpoint, self._segments = binding.endpoint, binding.segments
        self._info = info
        self._engine = engine
        self.loop = EngineLoop(engine, self._deliver, idle_work=idle_work)
        self._importer = PageImporter(
            pages,
            info.vocab_size,
            EngineDesk(self.loop),
            self._send,
            time.monotonic,
            binding.page_endpoint,
            binding.is_sealed,
            is_shared=bool(binding.segments),
        )
        self._pushed: Callable[[], HandoverCounters] = HandoverCounters
        self._streams: dict[RequestId, Peer] = {}
        rounds = Rounds(timeout_ms=lambda: _POLL_MS, on_round=self._tick, on_end=self._close_sockets)
        self._thread = SocketThread(binding.context, "replica-server", rounds)
        self._thread.register(self._socket, self._receive)
        self._groups = GroupIntake(self._importer, binding.host, self._thread.post)
        self._importer.meet = self._groups.meet
        self._intake = PageIntake(binding.page_listener, self._importer, self._thread, time.monotonic)

    def start(self, pushed: Callable[[], HandoverCounters]) -> None:
        """Serve; pushed tells the totals of the push side."""
        self._pushed = pushed
        self.loop.start()
        self._thread.start()

    @property
    def is_alive(self) -> bool:
        """The thread runs: False before `start`, after `stop`, and when an error ended it."""
        return self._thread.is_alive

    @property
    def num_streams(self) -> int:
        """Requests that routers have here; exact on the server's thread only."""
        return len(self._streams)

    def change_info(self, info: ReplicaInfo) -> None:
        """Present itself like this to routers that greet it from now on."""
        self._thread.post(partial(self._set_info, info))

    def stop(self) -> bool:
        """False if a step hangs: it goes on behind everything."""
        has_ended = self.loop.stop()
        self._thread.stop()
        return has_ended

    def stats(self) -> ReplicaStats:
        return ReplicaStats(
            replica_id=self._info.replica_id,
            num_running=self._engine.num_running,
            num_waiting=self._engine.num_waiting,
            num_pages=self._info.num_pages,
            num_used_pages=self._engine.num_used_pages,
            engine=self._engine.counters(),
            handover=self._importer.counters(self._pushed()),
            resident_bytes=resident_bytes(),
            step_times=self.loop.times(),
        )

    def _set_info(self, info: ReplicaInfo) -> None:
        self._info = info

    def _tick(self) -> None:
        self._importer.tick()
        self._intake.tick()
        self._departures.tick()

    def _close_sockets(self) -> None:
        self._socket.close()
        self._intake.close()
        self._groups.close()

    def _receive(self) -> None:
        frames = self._socket.recv_multipart()
        peer = frames[0]
        try:
            if len(frames) != 2:
                raise WireError(f"{len(frames) - 1} frames where one was expected")
            self._handle(peer, decode(frames[1]))
        except WireError as error:
            _log.warning("bad message dropped: %s", error)

    def _handle(self, peer: Peer, message: Message) -> None:
        match message:
            case Hello():
                self._send(peer, Welcome(info=self._info))
            case Ping():
                self._send(peer, Stats(stats=self.stats()))
            case Submit(request=request) if message.ticket_within_s is not None and not self._hands_over:
                self._send(peer, _rejection(request.request_id, ServiceUnavailable(_NO_HANDOVER)))
            case Reserve(request=request) if not self._hands_over:
                # No rejection: the router is to submit the request here, not to look for somebody else.
                self._send(peer, ReserveRefused(request_id=request.request_id, reason=_NO_HANDOVER))
            case Submit(request=request, ticket_within_s=ticket_within_s):
                if self._open_stream(peer, request):
                    if ticket_within_s is not None:
                        self._departures.expect(request.request_id, ticket_within_s)
                    self._admit(peer, request, partial(self._add, peer, request, ticket_within_s is not None))
            case HandOver(request_id=request_id, ticket=ticket):
                self._departures.direct(request_id, ticket)
            case Reserve(request=request, deadline_s=deadline_s):
                if self._open_stream(peer, request):
                    self._admit(peer, request, partial(self._reserve, peer, request, deadline_s))
            case Abort(request_id=request_id):
                self._abort(peer, request_id)
            case BeginPush():
                self._importer.begin(peer, message)
            case PushPages():
                if not self._groups.expect(peer, message):
                    self._importer.take_pages(peer, message)
            case Commit():
                self._importer.commit(peer, message)
            case Quiet():
                self._importer.quiet(peer, message)
                self._groups.drop(peer, message)
            case _:
                raise WireError(f"a replica has no use for {type(message).__name__}")

    def _send(self, peer: Peer, message: Message) -> None:
        """Deliver to a peer, unless it is gone."""
        if isinstance(message, HandoverFailed):
            self._streams.pop(message.request_id, None)
        self._send_frame(peer, encode(message))

    def _send_frame(self, peer: Peer, frame: bytes) -> None:
        """A peer that is gone (or takes nothing any more) loses its requests."""
        try:
            self._socket.send_multipart([peer, frame], zmq.NOBLOCK)
        except zmq.ZMQError as error:
            if error.errno not in (zmq.EHOSTUNREACH, zmq.EAGAIN):
                raise
            self._lose(peer)

    def _lose(self, peer: Peer) -> None:
        lost = [request_id for request_id, owner in self._streams.items() if owner == peer]
        if lost:
            _log.warning("a router is gone; its %d requests are aborted", len(lost))
        for request_id in lost:
            self._abort(peer, request_id)

    # Streams

    def _open_stream(self, peer: Peer, request: GenerationRequest) -> bool:
        if request.request_id in self._streams or self._departures.expects(request.request_id):
            error = InvalidRequest("the request id is in use", "request_id")
            self._send(peer, _rejection(request.request_id, error))
            return False
        self._streams[request.request_id] = peer
        return True

    def _admit(self, peer: Peer, request: GenerationRequest, command: Callable[[Grammar | None, Engine], None]) -> None:
        """Hand a command to the engine's thread, with the request's grammar as soon as it is compiled."""
        wanted = request.sampling.structured_outputs
        if wanted is None or self._grammars is None:
            self.loop.post(partial(command, None))
            return
        self._grammars.submit(wanted, request.tenant).add_done_callback(
            lambda future: self._thread.post(partial(self._admit_compiled, peer, request, command, future))
        )

    def _admit_compiled(
        self,
        peer: Peer,
        request: GenerationRequest,
        command: Callable[[Grammar | None, Engine], None],
        future: Future[Grammar],
    ) -> None:
        wanted = request.sampling.structured_outputs
        if self._streams.get(request.request_id) != peer or wanted is None:
            self._departures.forget(request.request_id)
            return  # aborted meanwhile
        try:
            grammar = grammar_in(future, wanted)
        except (InvalidRequest, ServiceUnavailable) as error:
            self._close_and_reject(peer, request.request_id, error)
        else:
            self.loop.post(partial(command, grammar))

    def _close_and_reject(self, peer: Peer, request_id: RequestId, error: InvalidRequest | ServiceUnavailable) -> None:
        self._streams.pop(request_id, None)
        self._departures.forget(request_id)
        self._send(peer, _rejection(request_id, error))

    def _abort(self, peer: Peer, request_id: RequestId) -> None:
        self._departures.abandon(request_id)
        if self._streams.get(request_id) != peer:
            return
        del self._streams[request_id]
        if not self._importer.abort(request_id):
            self.loop.post(lambda engine: engine.abort(request_id))

    def _deliver(self, outputs: list[TokenOutput]) -> None:
        """Called by the engine's thread."""
        self._thread.post(lambda: self._send_outputs(outputs))

    def _send_outputs(self, outputs: list[TokenOutput]) -> None:
        by_peer: defaultdict[Peer, list[TokenOutput]] = defaultdict(list)
        for output in outputs:
            peer = self._streams.get(output.request_id)
            if peer is not None and output.finish_reason == "error":
                self._close_and_reject(peer, output.request_id, _error_of(output))
            elif peer is not None:
                by_peer[peer].append(output)
                if output.finish_reason is not None:
                    del self._streams[output.request_id]
        for peer, batch in by_peer.items():
            self._send_tokens(peer, batch)

    def _send_tokens(self, peer: Peer, batch: list[TokenOutput]) -> None:
        packed = frames_of(batch)
        for frame in packed.frames:
            self._send_frame(peer, frame)
        for output in packed.too_large:
            self._abort(peer, output.request_id)
            self._send(peer, _rejection(output.request_id, too_large_error()))

    # Run by the engine's thread

    def _add(
        self,
        peer: Peer,
        request: GenerationRequest,
        is_prefill_only: bool,
        grammar: Grammar | None,
        engine: Engine,
    ) -> None:
        try:
            engine.add(request, grammar, is_prefill_only=is_prefill_only)
        except (InvalidRequest, ServiceUnavailable) as error:
            self._thread.post(partial(self._close_and_reject, peer, request.request_id, error))

    def _reserve(
        self, peer: Peer, request: GenerationRequest, deadline_s: float, grammar: Grammar | None, engine: Engine
    ) -> None:
        try:
            sequence = engine.reserve(request, grammar)
        except InvalidRequest as error:
            self._thread.post(partial(self._close_and_reject, peer, request.request_id, error))
        except ServiceUnavailable as error:
            self._thread.post(partial(self._refuse, peer, request.request_id, str(error)))
        else:
            self._thread.post(partial(self._promise, peer, sequence, deadline_s))

    def _refuse(self, peer: Peer, request_id: RequestId, reason: str) -> None:
        self._streams.pop(request_id, None)
        self._send(peer, ReserveRefused(request_id=request_id, reason=reason))

    def _promise(self, peer: Peer, sequence: Sequence, deadline_s: float) -> None:
        """The engine has set pages aside: write the ticket, unless the router has changed its mind."""
        if self._streams.get(sequence.request_id) != peer:
            self.loop.post(lambda engine: engine.release_reserved(sequence))
            return
        reservation = self._importer.open(sequence, peer, deadline_s)
        ticket = HandoverTicket(
            endpoint=self._endpoint,
            generation=reservation.generation,
            first_page=sequence.num_published_pages,
            page_indices=tuple(sequence.pages[sequence.num_published_pages :]),
            segments=self._segments,
            deadline_s=deadline_s,
        )
        self._send(peer, Reserved(request_id=sequence.request_id, ticket=ticket))


def _rejection(request_id: RequestId, error: InvalidRequest | ServiceUnavailable) -> Rejected:
    if isinstance(error, InvalidRequest):
        return Rejected(request_id=request_id, message=str(error), is_invalid=True, field=error.field)
    return Rejected(request_id=request_id, message=str(error), is_invalid=False)


def _error_of(output: TokenOutput) -> InvalidRequest | ServiceUnavailable:
    """Why the engine ended a sequence: the caller's mistake, or (the router may still ask somebody else) ours."""
    if output.error_field is not None:
        return InvalidRequest(output.error, output.error_field)
    return ServiceUnavailable(output.error)
