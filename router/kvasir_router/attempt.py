"""One try to serve a request along one route, over the links, until it ends or something is lost."""

import asyncio
from collections import deque
from collections.abc import AsyncGenerator
from contextlib import ExitStack, aclosing
from dataclasses import replace

from kvasir_protocol.errors import InvalidRequest, KvasirError
from kvasir_protocol.events import ReplicaStats, TokenOutput
from kvasir_protocol.ids import ReplicaId, RequestId
from kvasir_protocol.messages import Abort, HandOver, HandoverFailed, Rejected, Reserve, Reserved, Submit
from kvasir_protocol.messages import ReserveRefused as Refused
from kvasir_protocol.request import GenerationRequest
from kvasir_router.links import Arrival, Arrivals, Inbox, LinkLost, ReplicaLink
from kvasir_router.mailbox import Mailbox
from kvasir_router.patience import Patience
from kvasir_router.routing.load import InflightCounter


class ReplicaLost(KvasirError):
    """The replica that owed the next token is gone, stuck or out of its mind: go on elsewhere."""

    def __init__(self, replica_id: ReplicaId, reason: str) -> None:
        super().__init__(f"{replica_id}: {reason}")
        self.replica_id = replica_id


class ReplicaRefused(KvasirError):
    """A replica can't take the request now, and nothing is wrong with the request."""

    def __init__(self, replica_id: ReplicaId, reason: str) -> None:
        super().__init__(reason)
        self.replica_id = replica_id


class HandoverBroken(KvasirError):
    """Pages will not come from the prefill replica: let the decode replica prefill itself."""


def _has_stalled(before: ReplicaStats | None, after: ReplicaStats | None) -> bool:
    """Whether newer Stats tell of no further step. Without newer ones it is the link that judges the replica."""
    if after is None or after is before:
        return False
    return after.engine.num_steps <= (before.engine.num_steps if before else 0)


def _as_seen_from_decode(trouble: KvasirError, prefill: ReplicaLink) -> KvasirError:
    """The decode replica can do without the prefill replica."""
    if isinstance(trouble, ReplicaLost | ReplicaRefused) and trouble.replica_id == prefill.replica_id:
        return HandoverBroken(f"prefill failed: {trouble}")
    return trouble


class _TicketCourier:
    """Takes the decode replica's ticket to the prefill replica when it comes, however slowly the client reads."""

    def __init__(self, mailbox: Arrivals, request_id: RequestId, prefill: ReplicaLink) -> None:
        self.has_ticket = False
        self._mailbox = mailbox
        self._request_id = request_id
        self._prefill = prefill

    def put(self, item: tuple[ReplicaId, Arrival]) -> None:
        _, arrival = item
        if isinstance(arrival, Reserved) and not self.has_ticket:
            self.has_ticket = True
            self._prefill.send(HandOver(request_id=self._request_id, ticket=arrival.ticket))
        self._mailbox.put(item)


class Attempt:
    """Yields a request's outputs in order, each token once. Close it whatever happened.

    request.request_id is this attempt's own, so that no late word of a former attempt can be taken for its own.
    close() aborts the request at every replica that may still hold something of it.
    """

    def __init__(self, request: GenerationRequest, inflight: InflightCounter, patience: Patience) -> None:
        self._request = request
        self._patience = patience
        self._inflight = inflight
        self._mailbox: Arrivals = Mailbox()
        self._holders: dict[ReplicaId, tuple[ReplicaLink, ExitStack]] = {}
        self._prefilling = ExitStack()
        self._next_index = len(request.emitted_token_ids)
        # Decode's first tokens come by another connection and may overtake the last of prefill's.
        self._early: deque[Arrival] = deque()

    async def alone(self, replica: ReplicaLink) -> AsyncGenerator[TokenOutput, None]:
        """One replica prefills and decodes."""
        self._involve(replica)
        self._expect_prefill(replica)
        replica.send(Submit(request=self._request))
        async with aclosing(self._follow(replica)) as outputs:
            async for output in outputs:
                yield output

    async def separate(self, prefill: ReplicaLink, decode: ReplicaLink) -> AsyncGenerator[TokenOutput, None]:
        """prefill, meanwhile reserve at decode -> push -> decode. Raises HandoverBroken until decode has its pages."""
        self._expect_prefill(prefill)
        self._prefilling.enter_context(self._inflight.awaited(decode.replica_id))
        courier = _TicketCourier(self._mailbox, self._request.request_id, prefill)
        self._involve(decode, courier)
        decode.send(Reserve(request=self._request, deadline_s=self._patience.handover_s))
        self._involve(prefill)
        prefill.send(Submit(request=self._request, ticket_within_s=self._patience.handover_s))
        async with aclosing(self._prefilled(prefill, decode)) as outputs:
            async for output in outputs:
                yield output
                if output.finish_reason is not None:
                    return
        await self._reserved(courier, prefill, decode)
        async with aclosing(self._follow(decode, prefill)) as outputs:
            async for output in outputs:
                yield output

    def close(self) -> None:
        self._prefilling.close()
        for replica_id in list(self._holders):
            self._let_go(replica_id, abort=True)

    def _involve(self, replica: ReplicaLink, inbox: Inbox | None = None) -> None:
        """From now on the replica may hold something of the request, and counts as loaded by it. inbox: for what it
        says, if that goes another way to the mailbox."""
        stack = ExitStack()
        stack.enter_context(self._inflight.counted(replica.replica_id))
        self._holders[replica.replica_id] = (replica, stack)
        replica.attach(self._request.request_id, inbox or self._mailbox)

    def _expect_prefill(self, replica: ReplicaLink) -> None:
        """Until the first token of this attempt the replica has its prompt to compute."""
        num_tokens = len(self._request.prompt_token_ids) + len(self._request.emitted_token_ids)
        self._prefilling.enter_context(self._inflight.prefilling(replica.replica_id, num_tokens))

    def _let_go(self, replica_id: ReplicaId, *, abort: bool) -> None:
        replica, stack = self._holders.pop(replica_id)
        stack.close()
        replica.detach(self._request.request_id)
        if abort:
            replica.send(Abort(request_id=self._request.request_id))

    async def _reserved(self, courier: _TicketCourier, prefill: ReplicaLink, decode: ReplicaLink) -> None:
        """Return once decode has set pages aside."""
        waited_s = self._patience.reservation_s
        try:
            async with asyncio.timeout(waited_s):  # for all of it: a token that is said twice comes to the mailbox, too
                while not courier.has_ticket:
                    replica_id, arrival = await self._mailbox.get(waited_s)
                    if not isinstance(arrival, TokenOutput | Reserved):
                        raise _as_seen_from_decode(self._trouble(replica_id, arrival), prefill)
        except TimeoutError:
            raise HandoverBroken(f"{decode.replica_id} reserved no pages within {waited_s:g} s") from None

    async def _prefilled(self, prefill: ReplicaLink, decode: ReplicaLink) -> AsyncGenerator[TokenOutput, None]:
        """Prefill's outputs until it has handed over or the answer has ended."""
        is_prefilling = True
        while is_prefilling:
            try:
                output = await self._prefill_output(prefill, decode)
            except (ReplicaLost, ReplicaRefused) as trouble:
                raise _as_seen_from_decode(trouble, prefill) from None
            if output.finish_reason is not None:
                is_prefilling = False
            if output.finish_reason == "handed_over":
                output = replace(output, finish_reason=None)
            elif output.finish_reason is not None:
                self._let_go(prefill.replica_id, abort=False)
            if output.token_ids or output.finish_reason is not None:
                yield output

    async def _prefill_output(self, prefill: ReplicaLink, decode: ReplicaLink) -> TokenOutput:
        while True:
            replica_id, arrival = await self._next(prefill)
            if not isinstance(arrival, TokenOutput):
                raise self._trouble(replica_id, arrival)
            if replica_id == decode.replica_id:
                self._early.append(arrival)
            elif (output := self._in_order(prefill, arrival)) is not None:
                return output

    async def _follow(
        self, replica: ReplicaLink, prefill: ReplicaLink | None = None
    ) -> AsyncGenerator[TokenOutput, None]:
        """The replica's outputs up to the last. With its first output prefill has done its part."""
        while True:
            if self._early:
                replica_id, arrival = replica.replica_id, self._early.popleft()
            else:
                replica_id, arrival = await self._next(replica)
            if replica_id != replica.replica_id:
                if prefill is not None and isinstance(arrival, LinkLost | Rejected):
                    raise HandoverBroken(f"prefill was lost before decode began: {arrival}")
                continue
            if not isinstance(arrival, TokenOutput):
                raise self._trouble(replica_id, arrival)
            if prefill is not None:
                self._let_go(prefill.replica_id, abort=False)
                prefill = None
            output = self._in_order(replica, arrival)
            if output is None:
                continue
            if output.finish_reason == "handed_over":
                raise ReplicaLost(replica_id, "handed over a stream that was its own to finish")
            if output.finish_reason is not None:
                self._let_go(replica_id, abort=False)
            yield output
            if output.finish_reason is not None:
                return

    def _in_order(self, replica: ReplicaLink, output: TokenOutput) -> TokenOutput | None:
        """The part of output that is new, or None. Raises ReplicaLost if tokens are missing or the engine gave up."""
        if output.finish_reason in ("abort", "error"):
            raise ReplicaLost(replica.replica_id, f"ended the stream with {output.finish_reason!r}")
        self._prefilling.close()
        num_known = self._next_index - output.first_index
        if num_known < 0:
            raise ReplicaLost(
                replica.replica_id, f"skipped from token {self._next_index} to token {output.first_index}"
            )
        if num_known:
            output = replace(
                output,
                first_index=self._next_index,
                token_ids=output.token_ids[num_known:],
                logprobs=output.logprobs[num_known:],
            )
        self._next_index += len(output.token_ids)
        return output if output.token_ids or output.finish_reason is not None else None

    async def _next(self, awaited: ReplicaLink) -> tuple[ReplicaId, Arrival]:
        """The next arrival. Raises ReplicaLost after a silence in which the awaited replica made no progress."""
        silence_s = 0.0
        while True:
            stats = awaited.stats
            try:
                sender, arrival = await self._mailbox.get(self._patience.silence_s)
                if not isinstance(arrival, Reserved):  # the courier has seen to it
                    return sender, arrival
                continue
            except TimeoutError:
                silence_s += self._patience.silence_s
            if _has_stalled(stats, awaited.stats) or silence_s >= self._patience.max_silence_s:
                raise ReplicaLost(awaited.replica_id, f"said nothing for {silence_s:g} s")

    def _trouble(self, replica_id: ReplicaId, arrival: Arrival) -> KvasirError:
        """What an arrival means where a token was due."""
        match arrival:
            case LinkLost():
                self._let_go(replica_id, abort=False)
                return ReplicaLost(replica_id, arrival.reason)
            case Rejected():
                self._let_go(replica_id, abort=False)
                if arrival.is_invalid:
                    return InvalidRequest(arrival.message, arrival.field)
                return ReplicaRefused(replica_id, arrival.message)
            case Refused():
                return HandoverBroken(f"{replica_id} refused to reserve pages: {arrival.reason}")
            case HandoverFailed() if len(self._holders) > 1:
                self._let_go(replica_id, abort=False)
                return HandoverBroken(f"{replica_id}: {arrival.reason}")
            case _:
                return ReplicaLost(replica_id, f"sent {type(arrival).__name__} where a token was due")
