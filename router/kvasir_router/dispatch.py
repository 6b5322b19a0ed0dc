"""A stream's life: routed, followed, and carried on elsewhere when a replica is lost."""

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from dataclasses import dataclass, replace

from kvasir_protocol.errors import ServiceUnavailable, StreamLost
from kvasir_protocol.events import TokenOutput
from kvasir_protocol.ids import ReplicaId, RequestId
from kvasir_protocol.request import GenerationRequest
from kvasir_router.attempt import Attempt, HandoverBroken, ReplicaLost, ReplicaRefused
from kvasir_router.fleet import Fleet
from kvasir_router.metrics import FrontDoorMetrics
from kvasir_router.patience import Patience
from kvasir_router.routing.load import ReplicaLoad
from kvasir_router.routing.policy import RequestShape, Route, RoutingPolicy

logger = logging.getLogger(__name__)

MAX_REPLAYS = 3
"""A request that has lost four replicas may be what kills them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Dispatcher:
    """Serves requests on the fleet."""

    fleet: Fleet
    policy: RoutingPolicy
    metrics: FrontDoorMetrics
    patience: Patience
    clock: Callable[[], float] = time.monotonic

    async def until_begun(self) -> None:
        """A router that was just (re)started reaches its replicas within moments: return then, or after a while."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self.patience.first_link_s):
                while self.fleet.is_beginning:
                    await self.fleet.wait_for_change()

    async def stream(self, request: GenerationRequest) -> AsyncGenerator[TokenOutput, None]:
        """Every token of the request exactly once; the last output has a finish_reason that a client may see.

        Close the generator to abort. Raises InvalidRequest if a replica finds fault with the request,
        ServiceUnavailable if nobody takes it, StreamLost if nobody could finish it.
        """
        life = _StreamLife(self, request)
        try:
            async with aclosing(life.outputs()) as outputs:
                async for output in outputs:
                    yield output
        finally:
            self.fleet.close_idle()


class _StreamLife:
    """What is known of one stream across its attempts."""

    def __init__(self, dispatcher: Dispatcher, request: GenerationRequest) -> None:
        self._dispatcher = dispatcher
        self._fleet = dispatcher.fleet
        self._request = request
        self._emitted: list[int] = list(request.emitted_token_ids)
        self._arrived_at = dispatcher.clock()
        self._num_attempts = 0
        self._num_replays = 0
        self._num_refusals = 0
        self._avoided: set[ReplicaId] = set()
        self._prefills_itself: ReplicaId | None = None

    async def outputs(self) -> AsyncGenerator[TokenOutput, None]:
        while len(self._emitted) < self._request.max_tokens:
            route = await self._route()
            attempt = Attempt(self._numbered_request(), self._fleet.inflight, self._dispatcher.patience)
            try:
                async with aclosing(self._along(route, attempt)) as outputs:
                    async for output in outputs:
                        self._emitted.extend(output.token_ids)
                        yield output
                        if output.finish_reason is not None:
                            return
            except HandoverBroken as trouble:
                self._fall_back(route, trouble)
            except ReplicaRefused as trouble:
                self._try_another(trouble)
            except ReplicaLost as trouble:
                self._replay(trouble)
            finally:
                attempt.close()
        # The last token came, but the replica was lost before it could say that it was the last.
        yield TokenOutput(
            request_id=self._request.request_id,
            first_index=len(self._emitted),
            token_ids=(),
            finish_reason="length",
        )

    def _along(self, route: Route, attempt: Attempt) -> AsyncGenerator[TokenOutput, None]:
        decode = self._fleet.link(route.decode)
        if route.prefill is None:
            return attempt.alone(decode)
        return attempt.separate(self._fleet.link(route.prefill), decode)

    def _numbered_request(self) -> GenerationRequest:
        """The request as this attempt sends it: an id of its own from the second on, and what the client has."""
        self._num_attempts += 1
        suffix = "" if self._num_attempts == 1 else f"#{self._num_attempts}"
        return replace(
            self._request,
            request_id=RequestId(self._request.request_id + suffix),
            emitted_token_ids=tuple(self._emitted),
            deadline_s=self._remaining_s(),
        )

    def _remaining_s(self) -> float | None:
        """What former attempts left of the deadline for the first token. Raises ServiceUnavailable if it is nothing."""
        if self._request.deadline_s is None or self._emitted:
            return None
        remaining_s = self._request.deadline_s - (self._dispatcher.clock() - self._arrived_at)
        if remaining_s <= 0:
            raise ServiceUnavailable(f"no replica began the answer within {self._request.deadline_s:g} s")
        return remaining_s

    async def _route(self) -> Route:
        """Who is next. A stream that was dispatched before waits for somebody to come up; a new one is refused."""
        decode, self._prefills_itself = self._prefills_itself, None
        if decode is not None and any(link.replica_id == decode for link in self._fleet.live()):
            return Route(prefill=None, decode=decode, reason="hand-over failed, decode prefills itself")
        shape = RequestShape(
            num_prompt_tokens=len(self._request.prompt_token_ids) + len(self._emitted),
            max_tokens=self._request.max_tokens - len(self._emitted),
        )
        if self._num_attempts:
            await self._somebody_up()
        route = self._dispatcher.policy.choose(shape, self._candidates())
        logger.debug("%s: %s", self._request.request_id, route)
        return route

    def _candidates(self) -> list[ReplicaLoad]:
        """Those that have not failed this stream, if there are any."""
        loads = self._fleet.loads()
        return [load for load in loads if load.replica_id not in self._avoided] or loads

    async def _somebody_up(self) -> None:
        try:
            async with asyncio.timeout(self._dispatcher.patience.replica_wait_s):
                while not self._fleet.live():
                    await self._fleet.wait_for_change()
        except TimeoutError:
            waited = self._dispatcher.patience.replica_wait_s
            raise StreamLost(f"no replica came up within {waited:g} s to finish the answer") from None

    def _fall_back(self, route: Route, trouble: HandoverBroken) -> None:
        logger.info("%s: %s prefills itself: %s", self._request.request_id, route.decode, trouble)
        self._dispatcher.metrics.handover_fallbacks.inc()
        self._prefills_itself = route.decode

    def _try_another(self, trouble: ReplicaRefused) -> None:
        logger.info("%s: refused by %s: %s", self._request.request_id, trouble.replica_id, trouble)
        self._num_refusals += 1
        self._avoided.add(trouble.replica_id)
        has_other = any(load.replica_id not in self._avoided for load in self._fleet.loads())
        if self._num_refusals > 1 or not has_other:
            raise ServiceUnavailable(str(trouble)) from trouble

    def _replay(self, trouble: ReplicaLost) -> None:
        self._num_replays += 1
        self._avoided.add(trouble.replica_id)
        if self._num_replays > MAX_REPLAYS:
            raise StreamLost(
                f"the answer was lost {self._num_replays} times, the last time with {trouble}"
            ) from trouble
        logger.info("%s: replayed after %d tokens: %s", self._request.request_id, len(self._emitted), trouble)
        self._dispatcher.metrics.streams_replayed.inc()
