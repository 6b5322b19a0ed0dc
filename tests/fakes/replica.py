"""A replica without a model: the real wire over real sockets, a written answer, and faults on demand.

    replica = FakeReplica("decode-0", "decode", secret, answer=[5, 6, 7])
    async with replica: …                     # listens at replica.endpoint

Tokens of the answer go out one message each; at its end comes finish_reason "stop" (with eos_token_id, if given),
or "length" at max_tokens. Set a field of `faults` at any time.
"""

import asyncio
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

import zmq
import zmq.asyncio

from kvasir_protocol import wire
from kvasir_protocol.events import EngineCounters, HandoverCounters, ReplicaStats, TokenLogprobs, TokenOutput
from kvasir_protocol.ids import Generation, PageIndex, ReplicaId, RequestId
from kvasir_protocol.messages import (
    Abort,
    HandOver,
    HandoverFailed,
    HandoverTicket,
    Hello,
    Message,
    Ping,
    Rejected,
    Reserve,
    Reserved,
    ReserveRefused,
    Stats,
    Submit,
    Tokens,
    Welcome,
)
from kvasir_protocol.request import GenerationRequest
from kvasir_protocol.sockets import bind_server, start_gatekeeper
from kvasir_protocol.view import ReplicaAddress, ReplicaInfo, Role

DEADLINE_S = 10.0

M = TypeVar("M")


@dataclass(slots=True, kw_only=True)
class Faults:
    """What goes wrong. Positions are indices of generated tokens.

    die_at: all connections close instead of that token. silent_at: that token and later ones never come.
    pause_at: that token comes when `resumed` is set. skip: that token is left out. repeat: each token comes twice.
    rejection: the answer to Submit. reserve_refusal: its reason. ignores_*: no answer. loses_pages: HandoverFailed.
    hands_over_late: decode's tokens overtake the prefill replica's.
    """

    die_at: int | None = None
    silent_at: int | None = None
    pause_at: int | None = None
    skip: int | None = None
    repeat: bool = False
    rejection: Rejected | None = None
    reserve_refusal: str | None = None
    ignores_hello: bool = False
    ignores_reserve: bool = False
    reserves_when: asyncio.Event | None = None
    ignores_pings: bool = False
    loses_pages: bool = False
    hands_over_late: bool = False
    resumed: asyncio.Event = field(default_factory=asyncio.Event)


Ticket = asyncio.Future[HandoverTicket]
"""Where pages go, as soon as the router has said it."""


class FakeReplica:
    """received: every message so far, oldest first. held: request ids for which it has a sequence or reserved pages.

    num_steps: as Stats tell it; one for each token, and with steps_by_itself one for each Ping.
    """

    def __init__(
        self,
        name: str,
        role: Role,
        secret: bytes,
        *,
        answer: Sequence[int],
        eos_token_id: int | None = None,
        max_sequence_tokens: int = 1000,
        num_cached_tokens: int = 0,
    ) -> None:
        self.replica_id = ReplicaId(name)
        self.role: Role = role
        self.faults = Faults()
        self.received: list[Message] = []
        self.held: set[RequestId] = set()
        self.peers: Sequence[FakeReplica] = ()
        self.endpoint = ""
        self.num_steps = 0
        self.steps_by_itself = False
        self.num_used_pages = 0
        self._secret = secret
        self._answer = tuple(answer)
        self._eos_token_id = eos_token_id
        self._max_sequence_tokens = max_sequence_tokens
        self._num_cached_tokens = num_cached_tokens
        self._routers: set[bytes] = set()
        self._reservations: dict[RequestId, tuple[bytes, GenerationRequest]] = {}
        self._running: dict[RequestId, asyncio.Task[None]] = {}
        self._tickets: dict[RequestId, Ticket] = {}
        self._changed = asyncio.Condition()
        self._starting_or_stopping = asyncio.Lock()
        self._socket: Any = None

    @property
    def address(self) -> ReplicaAddress:
        return ReplicaAddress(replica_id=self.replica_id, role=self.role, endpoint=self.endpoint)

    async def __aenter__(self) -> "FakeReplica":
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.stop()

    async def start(self) -> None:
        """Listen; a second start takes the same port again."""
        async with self._starting_or_stopping:
            self._listen()

    def _listen(self) -> None:
        port = int(self.endpoint.rpartition(":")[2]) if self.endpoint else 0
        self._context: zmq.Context[Any] = zmq.Context()
        self._gatekeeper = start_gatekeeper(self._context, self._secret)
        self._socket, self.endpoint = bind_server(zmq.asyncio.Context(self._context), self._secret, "127.0.0.1", port)
        self._serving = asyncio.create_task(self._serve())

    async def stop(self) -> None:
        """As a killed process: every connection closes, nothing of any request is left."""
        async with self._starting_or_stopping:
            if self._socket is None:
                return
            for task in (self._serving, *self._running.values()):
                if task is not asyncio.current_task():
                    task.cancel()
            self._socket.close(linger=0)
            self._socket = None
            for held in (self._running, self._routers, self._reservations, self.held):
                held.clear()
            await asyncio.to_thread(self._gatekeeper.stop)
            self._context.destroy(linger=0)

    async def until(self, condition: Callable[["FakeReplica"], bool]) -> None:
        """Return when the condition holds; it is looked at after each message and each token."""
        async with asyncio.timeout(DEADLINE_S), self._changed:
            await self._changed.wait_for(lambda: condition(self))

    def got(self, kind: type[M]) -> list[M]:
        return [message for message in self.received if isinstance(message, kind)]

    async def _serve(self) -> None:
        while True:
            peer, frame = await self._socket.recv_multipart()
            message = wire.decode(frame)
            await self._handle(peer, message)
            self.received.append(message)
            await self._notify()

    async def _notify(self) -> None:
        async with self._changed:
            self._changed.notify_all()

    async def _send(self, peer: bytes, message: Message) -> None:
        if self._socket is not None:
            await self._socket.send_multipart([peer, wire.encode(message)])

    async def send_raw(self, frame: bytes) -> None:
        """A frame to every router that said Hello."""
        for peer in self._routers:
            await self._socket.send_multipart([peer, frame])

    async def _handle(self, peer: bytes, message: Message) -> None:
        match message:
            case Hello() if not self.faults.ignores_hello:
                await self._send(peer, Welcome(info=self._info()))
                self._routers.add(peer)
            case Ping() if not self.faults.ignores_pings:
                self.num_steps += self.steps_by_itself
                await self._send(peer, Stats(stats=self._stats()))
            case Reserve():
                await self._reserve_when_free(peer, message.request)
            case Submit():
                await self._submit(peer, message)
            case HandOver():
                if (asked := self._tickets.get(message.request_id)) is not None and not asked.done():
                    asked.set_result(message.ticket)
            case Abort():
                self._drop(message.request_id)
            case _:
                pass

    async def _reserve_when_free(self, peer: bytes, request: GenerationRequest) -> None:
        if self.faults.reserves_when is None:
            await self._reserve(peer, request)
            return
        self._running[request.request_id] = asyncio.create_task(self._reserve_later(peer, request))

    async def _reserve_later(self, peer: bytes, request: GenerationRequest) -> None:
        assert self.faults.reserves_when is not None
        await self.faults.reserves_when.wait()
        self._running.pop(request.request_id, None)
        await self._reserve(peer, request)

    async def _reserve(self, peer: bytes, request: GenerationRequest) -> None:
        if self.faults.ignores_reserve:
            return
        if self.faults.reserve_refusal is not None:
            await self._send(peer, ReserveRefused(request_id=request.request_id, reason=self.faults.reserve_refusal))
            return
        self._reservations[request.request_id] = (peer, request)
        self.held.add(request.request_id)
        await self._send(peer, Reserved(request_id=request.request_id, ticket=self._ticket()))

    async def _submit(self, peer: bytes, message: Submit) -> None:
        request = message.request
        if self.faults.rejection is not None:
            await self._send(peer, replace(self.faults.rejection, request_id=request.request_id))
            return
        self.held.add(request.request_id)
        if message.ticket_within_s is not None:
            self._tickets[request.request_id] = asyncio.get_running_loop().create_future()
        work = self._generate(peer, request, self._tickets.get(request.request_id))
        self._running[request.request_id] = asyncio.create_task(work)

    def _drop(self, request_id: RequestId) -> None:
        self.held.discard(request_id)
        self._reservations.pop(request_id, None)
        self._tickets.pop(request_id, None)
        if (task := self._running.pop(request_id, None)) is not None:
            task.cancel()

    async def _generate(self, peer: bytes, request: GenerationRequest, ticket: Ticket | None) -> None:
        for index in range(len(request.emitted_token_ids), request.max_tokens):
            if index == self.faults.die_at:
                await self.stop()
                return
            if index == self.faults.silent_at:
                await asyncio.Event().wait()
            if index == self.faults.pause_at:
                await self.faults.resumed.wait()
            output = self._output(request, index)
            if ticket is not None and output.finish_reason is None:
                await self._hand_over(peer, request, output, ticket)
                break
            self.num_steps += 1
            if index != self.faults.skip:
                await self._say(peer, output)
            if output.finish_reason is not None:
                break
            await asyncio.sleep(0)
        self.held.discard(request.request_id)
        self._tickets.pop(request.request_id, None)
        self._running.pop(request.request_id, None)
        await self._notify()

    async def _say(self, peer: bytes, output: TokenOutput) -> None:
        for _ in range(2 if self.faults.repeat else 1):
            await self._send(peer, Tokens(outputs=(output,)))
        await self._notify()

    async def _hand_over(self, peer: bytes, request: GenerationRequest, output: TokenOutput, ticket: Ticket) -> None:
        """One replica calls the other: between fakes no pages travel."""
        emitted = (*request.emitted_token_ids, *output.token_ids)
        if not self.faults.hands_over_late:
            await self._say(peer, replace(output, finish_reason="handed_over"))
        endpoint = (await ticket).endpoint
        decode = next(peer for peer in self.peers if peer.endpoint == endpoint)
        await decode.commit(request.request_id, emitted)
        if self.faults.hands_over_late:
            await decode.until(lambda replica: request.request_id not in replica.held)
            await self._say(peer, replace(output, finish_reason="handed_over"))

    async def commit(self, request_id: RequestId, emitted: tuple[int, ...]) -> None:
        reservation = self._reservations.pop(request_id, None)
        if reservation is None:
            return
        peer, request = reservation
        if self.faults.loses_pages:
            self.held.discard(request_id)
            await self._send(peer, HandoverFailed(request_id=request_id, generation=Generation(1), reason="lost"))
            return
        self._running[request_id] = asyncio.create_task(
            self._generate(peer, replace(request, emitted_token_ids=emitted), None)
        )

    def _output(self, request: GenerationRequest, index: int) -> TokenOutput:
        is_last = index == len(self._answer) - 1
        ends_by_eos = index == len(self._answer) and self._eos_token_id is not None
        token_id = self._eos_token_id if ends_by_eos else self._answer[index]
        assert token_id is not None
        output = TokenOutput(
            request_id=request.request_id,
            first_index=index,
            token_ids=(token_id,),
            num_cached_tokens=self._num_cached_tokens,
        )
        if request.sampling.logprobs is not None:
            output = replace(output, logprobs=(self._logprobs(token_id, request.sampling.logprobs),))
        if ends_by_eos:
            return replace(output, finish_reason="stop", stop_token=token_id)
        if index + 1 == request.max_tokens:
            return replace(output, finish_reason="length")
        return replace(output, finish_reason="stop" if is_last and self._eos_token_id is None else None)

    @staticmethod
    def _logprobs(token_id: int, num_top: int) -> TokenLogprobs:
        others = [other for other in range(num_top + 1) if other != token_id][: max(num_top - 1, 0)]
        top = [token_id, *others][:num_top]
        return TokenLogprobs(
            logprob=-0.5,
            top_token_ids=tuple(top),
            top_logprobs=tuple(-0.5 - rank for rank in range(len(top))),
        )

    def _ticket(self) -> HandoverTicket:
        return HandoverTicket(
            endpoint=self.endpoint,
            generation=Generation(1),
            first_page=0,
            page_indices=(PageIndex(0),),
            segments=(),
            deadline_s=10.0,
        )

    def _info(self) -> ReplicaInfo:
        return ReplicaInfo(
            replica_id=self.replica_id,
            role=self.role,
            model="test",
            vocab_size=1000,
            max_sequence_tokens=self._max_sequence_tokens,
            page_size=16,
            num_pages=100,
            process_id=1,
            host="127.0.0.1",
        )

    def _stats(self) -> ReplicaStats:
        return ReplicaStats(
            replica_id=self.replica_id,
            num_running=len(self._running),
            num_waiting=0,
            num_pages=100,
            num_used_pages=self.num_used_pages,
            engine=EngineCounters(num_steps=self.num_steps, generated_tokens=self.num_steps),
            handover=HandoverCounters(pushed_bytes_tcp=7),
            resident_bytes=int(time.monotonic()),
        )
