"""What LLM gives back; names and shapes as in vLLM."""

from dataclasses import dataclass

from kvasir_protocol.events import EngineCounters


@dataclass(frozen=True, slots=True)
class Logprob:
    """rank counts from 1; it is None for a chosen token that is not among the likeliest that were asked for."""

    logprob: float
    rank: int | None
    decoded_token: str


@dataclass(frozen=True, slots=True)
class CompletionOutput:
    """One choice. logprobs: per token, the alternatives and the token itself by id; None unless asked for.

    finish_reason: "stop" or "length". stop_reason: the stop string, or the caller's stop token, that ended it.
    """

    index: int
    text: str
    token_ids: list[int]
    cumulative_logprob: float | None
    logprobs: list[dict[int, Logprob]] | None
    finish_reason: str
    stop_reason: str | int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Increment:
    """What a stream has new of one choice. text may be "" while half a character or a stop string is held back.

    finish_reason is set on a choice's last increment.
    """

    index: int
    text: str
    token_ids: list[int]
    logprobs: list[dict[int, Logprob]] | None
    finish_reason: str | None
    stop_reason: str | int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestMetrics:
    """Seconds since the request came in: to its first step, its first token and its last (of all its choices)."""

    queue_s: float
    first_token_s: float
    finished_s: float


@dataclass(frozen=True, slots=True)
class RequestOutput:
    """All choices of one prompt. prompt is None for a prompt of token ids; num_cached_tokens were not computed anew.

    prompt_logprobs: one entry per prompt token, None for the first; None unless asked for.
    """

    request_id: str
    prompt: str | None
    prompt_token_ids: list[int]
    outputs: list[CompletionOutput]
    num_cached_tokens: int
    metrics: RequestMetrics
    prompt_logprobs: list[dict[int, Logprob] | None] | None = None
    finished: bool = True


@dataclass(frozen=True, slots=True)
class EmbeddingOutput:
    embedding: list[float]


@dataclass(frozen=True, slots=True)
class EmbeddingRequestOutput:
    """One prompt's embedding. prompt is None for a prompt of token ids."""

    request_id: str
    prompt: str | None
    prompt_token_ids: list[int]
    outputs: EmbeddingOutput
    num_cached_tokens: int
    metrics: RequestMetrics


@dataclass(frozen=True, slots=True)
class BeamSearchSequence:
    """tokens: prompt and answer; text: the answer's. cum_logprob over its length ** length_penalty is the score."""

    tokens: list[int]
    text: str
    cum_logprob: float
    score: float
    finish_reason: str


@dataclass(frozen=True, slots=True)
class BeamSearchOutput:
    """The beam_width best answers to one prompt, best first."""

    sequences: list[BeamSearchSequence]


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineStats:
    """How the engine fares right now, and its totals since it started."""

    num_running: int
    num_waiting: int
    num_pages: int
    num_used_pages: int
    counters: EngineCounters
