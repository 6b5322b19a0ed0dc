"""Sampling parameters out of a body, with the model's defaults where the caller is silent."""

from kvasir_protocol.errors import ContextTooLong, InvalidRequest
from kvasir_protocol.request import MAX_LOGPROBS, SamplingParams
from kvasir_router.model_files import GenerationDefaults
from kvasir_router.openai.bodies import ChatBody, CompletionBody, GenerationBody
from kvasir_router.openai.structured import wanted_form

DEFAULT_COMPLETION_TOKENS = 16
"""OpenAI's default for /v1/completions; chat goes on to the end of the context."""


def completion_sampling(body: CompletionBody, defaults: GenerationDefaults) -> SamplingParams:
    """max_tokens stays None where the caller names none."""
    if body.logprobs is not None and body.logprobs > MAX_LOGPROBS:
        raise InvalidRequest(f"logprobs must be at most {MAX_LOGPROBS}, got {body.logprobs}", "logprobs")
    return _sampling(body, defaults, body.max_tokens, body.logprobs)


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
    )


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
