"""What LLM.generate and LLM.chat return; names and shapes as in vLLM."""

from dataclasses import dataclass


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


@dataclass(frozen=True, slots=True)
class RequestOutput:
    """All choices of one prompt. prompt is None for a prompt of token ids; num_cached_tokens were not computed anew."""

    request_id: str
    prompt: str | None
    prompt_token_ids: list[int]
    outputs: list[CompletionOutput]
    num_cached_tokens: int
    finished: bool = True
