"""Sampling parameters out of a body, with the model's defaults where the caller is silent."""

from collections.abc import Mapping
from dataclasses import replace

from kvasir_protocol.errors import ContextTooLong, InvalidRequest
from kvasir_protocol.request import MAX_CHOICES, SamplingParams, TokenBias
from kvasir_router.model_files import GenerationDefaults
from kvasir_router.openai.bodies import ChatBody, CompletionBody, GenerationBody
from kvasir_router.openai.structured import wanted_form

DEFAULT_COMPLETION_TOKENS = 16
"""OpenAI's default for /v1/completions; chat goes on to the end of the context."""

MAX_LOGPROBS = 20
"""OpenAI's limit. An engine gives more to those in its own process, for whom they need not travel."""


def completion_sampling(body: CompletionBody, defaults: GenerationDefaults) -> SamplingParams:
    """max_tokens stays None where the caller names none."""
    for field, number in (("logprobs", body.logprobs), ("prompt_logprobs", body.prompt_logprobs)):
        if number is not None and number > MAX_LOGPROBS:
            raise InvalidRequest(f"{field} must be at most {MAX_LOGPROBS}, got {number}", field)
    _check_best_of(body)
    if body.stream and body.prompt_logprobs is not None:
        raise InvalidRequest("prompt_logprobs come with a whole answer only; leave stream out", "prompt_logprobs")
    # A prompt is scored by a request for one token, which is not shown.
    max_tokens = 1 if only_echoes(body) else body.max_tokens
    sampling = _sampling(body, defaults, max_tokens, body.logprobs)
    num_prompt_logprobs = [number for number in (body.prompt_logprobs, echoed_logprobs(body)) if number is not None]
    sampling = replace(sampling, prompt_logprobs=max(num_prompt_logprobs, default=None))
    if num_candidates(body) == body.n:
        return sampling
    if sampling.temperature == 0:
        raise InvalidRequest("best_of needs a temperature above 0: greedy choices would all be the same", "best_of")
    return replace(sampling, n=num_candidates(body), logprobs=sampling.logprobs or 0)


def only_echoes(body: CompletionBody) -> bool:
    """Nothing but the prompt is wanted back: OpenAI's way to score a text."""
    return bool(body.echo) and body.max_tokens == 0


def echoed_logprobs(body: CompletionBody) -> int | None:
    return body.logprobs if body.echo else None


def num_candidates(body: CompletionBody) -> int:
    """Answers that are made of each prompt; the best n of them are shown."""
    return body.n if body.best_of is None else body.best_of


def _check_best_of(body: CompletionBody) -> None:
    """Raises InvalidRequest for a best_of that contradicts n or stream."""
    if body.best_of is None:
        return
    if not 1 <= body.best_of <= MAX_CHOICES:
        raise InvalidRequest(f"best_of must be between 1 and {MAX_CHOICES}, got {body.best_of}", "best_of")
    if body.best_of < body.n:
        raise InvalidRequest(f"best_of ({body.best_of}) must be at least n ({body.n})", "best_of")
    if body.stream and body.best_of > 1:
        raise InvalidRequest("the best answers are known when all have ended; leave stream or best_of out", "best_of")


def chat_sampling(body: ChatBody, defaults: GenerationDefaults) -> SamplingParams:
    """max_tokens stays None where the caller names none. Raises InvalidRequest for options that contradict."""
    if body.top_logprobs is not None and not body.logprobs:
        raise InvalidRequest("top_logprobs needs logprobs to be true", "top_logprobs")
    if not 0 <= (body.top_logprobs or 0) <= MAX_LOGPROBS:
        raise InvalidRequest(
            f"top_logprobs must be between 0 and {MAX_LOGPROBS}, got {body.top_logprobs}", "top_logprobs"
        )
    both = (body.max_tokens, body.max_completion_tokens)
    if None not in both and body.max_tokens != body.max_completion_tokens:
        raise InvalidRequest("max_tokens and max_completion_tokens contradict each other; send one", "max_tokens")
    max_tokens = body.max_tokens if body.max_completion_tokens is None else body.max_completion_tokens
    return _sampling(body, defaults, max_tokens, (body.top_logprobs or 0) if body.logprobs else None)


def _sampling(
    body: GenerationBody, defaults: GenerationDefaults, max_tokens: int | None, logprobs: int | None
) -> SamplingParams:
    if body.stream_options is not None and not body.stream:
        raise InvalidRequest("stream_options needs stream to be true", "stream_options")
    return SamplingParams(
        n=body.n,
        max_tokens=max_tokens,
        min_tokens=body.min_tokens,
        temperature=_either(body.temperature, defaults.temperature),
        top_p=_either(body.top_p, defaults.top_p),
        top_k=body.top_k if body.top_k is not None else defaults.top_k,
        min_p=_either(body.min_p, defaults.min_p),
        seed=body.seed,
        stop=(body.stop,) if isinstance(body.stop, str) else tuple(body.stop or ()),
        stop_token_ids=tuple(body.stop_token_ids or ()),
        include_stop_str_in_output=body.include_stop_str_in_output,
        ignore_eos=body.ignore_eos,
        repetition_penalty=_either(body.repetition_penalty, defaults.repetition_penalty),
        presence_penalty=_either(body.presence_penalty, 0.0),
        frequency_penalty=_either(body.frequency_penalty, 0.0),
        logprobs=logprobs,
        skip_special_tokens=body.skip_special_tokens,
        structured_outputs=wanted_form(body.response_format, body.structured_outputs),
        logit_bias=_token_biases(body.logit_bias or {}),
        allowed_token_ids=tuple(body.allowed_token_ids or ()),
        bad_words=tuple(body.bad_words or ()),
    )


def _token_biases(logit_bias: Mapping[str, float]) -> tuple[TokenBias, ...]:
    """JSON's keys are text: "50256" stands for the token of that id."""
    if any(not (key.isascii() and key.isdigit()) for key in logit_bias):
        raise InvalidRequest("logit_bias must be a map from token id to bias", "logit_bias")
    return tuple(TokenBias(int(key), bias) for key, bias in logit_bias.items())


def _either(given: float | None, default: float) -> float:
    return default if given is None else given


def resolve_max_tokens(
    max_tokens: int | None, num_prompt_tokens: int, context_tokens: int, default: int | None = None
) -> int:
    """How many tokens may be generated. default None: up to the context's end.

    Raises ContextTooLong if the prompt leaves no room, or less than max_tokens.
    """
    room = context_tokens - num_prompt_tokens
    if room < 1:
        raise ContextTooLong(
            f"the prompt has {num_prompt_tokens} tokens; the context of {context_tokens} must also hold the answer. "
            "Shorten the prompt",
            "prompt",
        )
    if max_tokens is None:
        return room if default is None else min(default, room)
    if max_tokens > room:
        raise ContextTooLong(
            f"the prompt's {num_prompt_tokens} tokens and max_tokens {max_tokens} exceed the context of "
            f"{context_tokens}; lower max_tokens to {room} or shorten the prompt",
            "max_tokens",
        )
    return max_tokens
