"""One HTTP request's streams: tokenised, fanned out over prompts and choices, and counted."""

import secrets
import time
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing
from dataclasses import asdict, dataclass, replace

from kvasir_protocol.ids import RequestId
from kvasir_protocol.request import FinishReason, GenerationRequest, SamplingParams
from kvasir_router.answers import merge, pieces
from kvasir_router.front_door import FrontDoor
from kvasir_router.openai.prompts import TokenIds
from kvasir_router.openai.sampling import resolve_max_tokens
from kvasir_router.pieces import Piece


@dataclass(frozen=True, slots=True, kw_only=True)
class Terms:
    """On which terms it is served, as GenerationRequest has them."""

    tenant: str
    cache_salt: str
    priority: int
    cache_priority: int
    deadline_s: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Order:
    """What a body asks for. wire_id is unique even if the client gives the same X-Request-Id twice.

    default_max_tokens None: up to the context's end. Choices are numbered prompt by prompt.
    hides_answer: only the prompt is shown; the one token that was made in order to score it is not.
    """

    wire_id: str
    sampling: SamplingParams
    num_prompts: int
    tokenise: Callable[[], Awaitable[list[TokenIds]]]
    default_max_tokens: int | None
    terms: Terms
    hides_answer: bool = False

    @property
    def num_choices(self) -> int:
        return self.num_prompts * self.sampling.n


class Generation:
    """An order being served. usage() is right when the last piece of every choice has come."""

    def __init__(self, door: FrontDoor, order: Order) -> None:
        self._door = door
        self._order = order
        self._started_at = time.monotonic()
        self._num_prompt_tokens = 0
        self._num_completion_tokens = 0
        self._cached_tokens: dict[int, int] = {}

    @property
    def num_choices(self) -> int:
        return self._order.num_choices

    async def pieces(self) -> AsyncGenerator[Piece, None]:
        """The pieces of all choices as they come. Closing the generator aborts every stream."""
        with self._door.limit.admitted(self._order.num_choices):
            prompts = await self._order.tokenise()
            await self._door.dispatcher.until_begun()  # replicas know the longest context
            self._num_prompt_tokens = sum(map(len, prompts))
            streams = [
                pieces(request, index, self._door.dispatcher, self._door.codec, self._started_at)
                for index, request in enumerate(self._requests(prompts))
            ]
            async with aclosing(merge(streams)) as merged:
                async for piece in merged:
                    if self._order.hides_answer:
                        piece = _without_answer(piece)
                    self._num_completion_tokens += len(piece.token_ids)
                    self._cached_tokens.setdefault(piece.choice_index, piece.num_cached_tokens)
                    yield piece

    def usage(self) -> dict[str, object]:
        """OpenAI's usage object. A prompt counts once, however many choices it has."""
        first_choices = range(0, self._order.num_choices, self._order.sampling.n)
        return {
            "prompt_tokens": self._num_prompt_tokens,
            "completion_tokens": self._num_completion_tokens,
            "total_tokens": self._num_prompt_tokens + self._num_completion_tokens,
            "prompt_tokens_details": {"cached_tokens": sum(self._cached_tokens.get(i, 0) for i in first_choices)},
        }

    def _requests(self, prompts: list[TokenIds]) -> list[GenerationRequest]:
        requests: list[GenerationRequest] = []
        for prompt in prompts:
            sampling = self._resolved_sampling(len(prompt))
            for choice_index in range(sampling.n):
                request_id = RequestId(f"{self._order.wire_id}/{len(requests)}")
                requests.append(
                    GenerationRequest(
                        request_id=request_id,
                        prompt_token_ids=prompt,
                        sampling=sampling,
                        choice_index=choice_index,
                        **asdict(self._order.terms),
                    )
                )
        return requests

    def _resolved_sampling(self, num_prompt_tokens: int) -> SamplingParams:
        """With max_tokens and the seed decided, so that a replay elsewhere makes the same tokens."""
        sampling = self._order.sampling
        return replace(
            sampling,
            max_tokens=resolve_max_tokens(
                sampling.max_tokens, num_prompt_tokens, self._door.context_tokens, self._order.default_max_tokens
            ),
            seed=secrets.randbits(63) if sampling.seed is None else sampling.seed,
            bad_words=(),
            bad_word_token_ids=self._door.codec.bad_word_token_ids(sampling.bad_words),
        )


def _without_answer(piece: Piece) -> Piece:
    finish_reason: FinishReason | None = None if piece.finish_reason is None else "length"
    return replace(piece, text="", token_ids=(), scored=(), finish_reason=finish_reason, stop_reason=None)
