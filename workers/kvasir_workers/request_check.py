"""What no engine takes, said to whoever asked for it."""

from dataclasses import dataclass

from kvasir_protocol.errors import ContextTooLong, InvalidRequest
from kvasir_protocol.request import MAX_CACHE_PRIORITY, GenerationRequest
from kvasir_workers.grammar.state import Grammar, GrammarState
from kvasir_workers.sampling_limits import check_token_ids


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineLimits:
    """max_sequence_tokens: prompt and answer together, what the context and the pages can hold."""

    max_sequence_tokens: int
    vocab_size: int
    eos_token_ids: frozenset[int]


def check_request(request: GenerationRequest, limits: EngineLimits) -> None:
    """Raises InvalidRequest or ContextTooLong, naming the field."""
    _check_numbers(request)
    _check_tokens(request, limits)
    prompt = request.prompt_token_ids
    num_tokens = len(prompt) + request.max_tokens
    if num_tokens > limits.max_sequence_tokens:
        raise ContextTooLong(
            f"prompt of {len(prompt)} tokens and max_tokens of {request.max_tokens} make {num_tokens}; this model "
            f"serves up to {limits.max_sequence_tokens} in all: shorten the prompt or lower max_tokens",
            "max_tokens" if len(prompt) < limits.max_sequence_tokens else "prompt",
        )
    if request.emitted_token_ids and len(request.emitted_token_ids) >= request.max_tokens:
        raise InvalidRequest("all of max_tokens were emitted already", "emitted_token_ids")


def _check_numbers(request: GenerationRequest) -> None:
    if request.sampling.max_tokens is None or request.sampling.seed is None:
        raise InvalidRequest("max_tokens and seed are to be set before a request reaches an engine", "max_tokens")
    if request.deadline_s is not None and not request.deadline_s > 0:
        raise InvalidRequest(f"a deadline lies above 0 s, got {request.deadline_s}", "deadline_s")
    if request.choice_index < 0:
        raise InvalidRequest(f"choices are counted from 0, got {request.choice_index}", "n")
    if not 0 <= request.cache_priority <= MAX_CACHE_PRIORITY:
        raise InvalidRequest(
            f"cache_priority must be between 0 and {MAX_CACHE_PRIORITY}, got {request.cache_priority}",
            "cache_priority",
        )


def _check_tokens(request: GenerationRequest, limits: EngineLimits) -> None:
    prompt, vocab_size = request.prompt_token_ids, limits.vocab_size
    if not prompt:
        raise InvalidRequest("the prompt is empty; give at least one token", "prompt")
    if not all(0 <= token_id < vocab_size for token_id in (*prompt, *request.emitted_token_ids)):
        raise InvalidRequest(f"the prompt has token ids outside the vocabulary of {vocab_size}", "prompt")
    if not all(0 <= token_id < vocab_size for token_id in request.sampling.stop_token_ids):
        raise InvalidRequest(f"a stop token id is outside the vocabulary of {vocab_size}", "stop_token_ids")
    check_token_ids(request.sampling, vocab_size, limits.eos_token_ids)


def grammar_state(request: GenerationRequest, grammar: Grammar | None) -> GrammarState | None:
    """The beginning of the request's grammar, or where its emitted tokens have led to."""
    wanted = request.sampling.structured_outputs
    if wanted is None:
        return None
    if grammar is None:
        raise InvalidRequest(f"{wanted.field}: the grammar was not compiled before the request was added", wanted.field)
    state = grammar.start()
    if not state.accept(request.emitted_token_ids):
        raise InvalidRequest("the emitted tokens are not of the form that was asked for", "emitted_token_ids")
    return state
