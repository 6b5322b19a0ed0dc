"""What a caller wants: sampling parameters and the request that travels to an engine."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

from kvasir_protocol.errors import InvalidRequest
from kvasir_protocol.ids import RequestId
from kvasir_protocol.structured import StructuredOutput, structured_output

MAX_LOGPROBS = 128
"""Alternatives per token that a caller in this process may ask for: what 64 beams need and more. HTTP takes fewer."""

MAX_SEED = 2**63 - 1

MAX_CACHE_PRIORITY = 100
"""The range of TensorRT-LLM's retention priorities."""

MAX_STOPS = 64
MAX_STOP_CHARS = 512
"""Every new piece of text is searched for every stop string: more would cost others their time."""

MAX_CHOICES = 128

MAX_LOGIT_BIAS = 1024
"""Entries of logit_bias; OpenAI names no limit and vLLM has none, but each costs time at every token."""

MAX_ALLOWED_TOKENS = 2**18
"""Entries of allowed_token_ids: no vocabulary is larger."""

MAX_BAD_WORDS = 1024

Pooling = Literal["mean", "last", "cls"]
"""Which of a prompt's final hidden states make its embedding: their mean, the last token's or the first's."""

FinishReason = Literal["stop", "length", "abort", "error", "handed_over"]
"""Why a sequence ended; `handed_over` ends it on the prefill replica only and never reaches a client."""


_INTEGERS = ("n", "max_tokens", "min_tokens", "top_k", "seed", "logprobs", "prompt_logprobs")
_NULLABLE = ("max_tokens", "seed", "logprobs", "prompt_logprobs")
_FLAGS = ("include_stop_str_in_output", "ignore_eos", "skip_special_tokens")


def _tuple_of(kind: type, value: Iterable[object], field: str) -> tuple[object, ...]:
    """The items, all of one kind. Raises InvalidRequest that names the field."""
    items = tuple(value) if isinstance(value, list | tuple | set | frozenset) else (value,)
    if any(not isinstance(item, kind) or isinstance(item, bool) for item in items):
        raise InvalidRequest(f"{field} must be a list of {kind.__name__}, got {value!r}", field)
    return items


@dataclass(frozen=True, slots=True)
class TokenBias:
    """What is added to one token's logit before each choice, from -100 to 100 as in OpenAI's interface."""

    token_id: int
    bias: float

    def __post_init__(self) -> None:
        if not isinstance(self.token_id, int) or isinstance(self.token_id, bool) or self.token_id < 0:
            raise InvalidRequest(f"logit_bias is by token id, got {self.token_id!r}", "logit_bias")
        if not isinstance(self.bias, int | float) or isinstance(self.bias, bool) or not -100 <= self.bias <= 100:
            raise InvalidRequest(
                f"a logit_bias must be between -100 and 100, got {self.bias!r} for token {self.token_id}", "logit_bias"
            )


def _token_biases(value: object) -> tuple[TokenBias, ...]:
    """The entries of a map from token id to bias, or of a list of TokenBias."""
    if value is None:
        return ()
    entries = [TokenBias(*item) for item in value.items()] if isinstance(value, Mapping) else value
    if not isinstance(entries, list | tuple) or any(not isinstance(entry, TokenBias) for entry in entries):
        raise InvalidRequest(f"logit_bias must be a map from token id to bias, got {value!r}", "logit_bias")
    if len(entries) > MAX_LOGIT_BIAS:
        raise InvalidRequest(f"logit_bias may have {MAX_LOGIT_BIAS} entries, got {len(entries)}", "logit_bias")
    if len({entry.token_id for entry in entries}) < len(entries):
        raise InvalidRequest("logit_bias names a token twice", "logit_bias")
    return tuple(entries)


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplingParams:
    """How to choose tokens and when to stop; vLLM's names and meanings.

    temperature 0 is greedy; top_k 0 or -1 and top_p 1 switch those filters off; max_tokens None means
    "up to the context's end". logit_bias may be given as a map from token id to bias. allowed_token_ids: if there are
    any, no other token may come. bad_words are text until they reach an engine, there bad_word_token_ids stand for
    them: the last token of each is forbidden where the ones before it were just generated. prompt_logprobs: so many
    likeliest tokens at each place of the prompt. structured_outputs may be given as vLLM's map, such as
    {"json": {…}}; its end is the answer's end, whatever min_tokens says.
    Raises InvalidRequest that names the first field out of range.
    """

    n: int = 1
    max_tokens: int | None = 16
    min_tokens: int = 0
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    seed: int | None = None
    stop: tuple[str, ...] = ()
    stop_token_ids: tuple[int, ...] = ()
    include_stop_str_in_output: bool = False
    ignore_eos: bool = False
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logprobs: int | None = None
    prompt_logprobs: int | None = None
    skip_special_tokens: bool = True
    structured_outputs: StructuredOutput | None = None
    logit_bias: tuple[TokenBias, ...] = ()
    allowed_token_ids: tuple[int, ...] = ()
    bad_words: tuple[str, ...] = ()
    bad_word_token_ids: tuple[tuple[int, ...], ...] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "stop", _tuple_of(str, self.stop, "stop"))
        object.__setattr__(self, "stop_token_ids", _tuple_of(int, self.stop_token_ids, "stop_token_ids"))
        object.__setattr__(self, "logit_bias", _token_biases(self.logit_bias))
        self._settle_token_lists()
        for name in _FLAGS:
            if not isinstance(getattr(self, name), bool):
                raise InvalidRequest(f"{name} must be true or false, got {getattr(self, name)!r}", name)
        self._check_ranges()
        self._check_structure()
        if self.max_tokens is not None and self.min_tokens > self.max_tokens:
            raise InvalidRequest(
                f"min_tokens ({self.min_tokens}) must not exceed max_tokens ({self.max_tokens})", "min_tokens"
            )
        if len(self.stop) > MAX_STOPS or len(self.stop_token_ids) > MAX_STOPS:
            name = "stop" if len(self.stop) > MAX_STOPS else "stop_token_ids"
            raise InvalidRequest(f"{name} may have {MAX_STOPS} entries at most", name)
        if any(len(text) > MAX_STOP_CHARS for text in self.stop):
            raise InvalidRequest(f"a stop string may have {MAX_STOP_CHARS} characters at most", "stop")
        if any(not text for text in self.stop):
            raise InvalidRequest("stop strings must not be empty", "stop")
        if any("\ud800" <= character <= "\udfff" for text in self.stop for character in text):
            raise InvalidRequest("stop strings must be Unicode text, without lone surrogates", "stop")
        if self.temperature == 0 and self.n > 1:
            raise InvalidRequest("n must be 1 with temperature 0: greedy choices would all be the same", "n")

    def _check_structure(self) -> None:
        wanted: object = self.structured_outputs
        if isinstance(wanted, Mapping):
            object.__setattr__(self, "structured_outputs", structured_output(wanted))
        elif wanted is not None and not isinstance(wanted, StructuredOutput):
            raise InvalidRequest(
                f"structured_outputs must be a map such as {{'regex': '…'}}, got {type(wanted).__name__}",
                "structured_outputs",
            )
        if self.structured_outputs is not None and self.ignore_eos:
            raise InvalidRequest(
                "ignore_eos contradicts structured_outputs, whose form says where the answer ends; send one of them",
                "ignore_eos",
            )

    def _settle_token_lists(self) -> None:
        """Lists as tuples, None as an empty one. Raises InvalidRequest for what no token could fulfil."""
        words = self.bad_word_token_ids or ()
        if not isinstance(words, list | tuple):
            raise InvalidRequest(f"bad_word_token_ids must be a list of lists, got {words!r}", "bad_word_token_ids")
        sequences = tuple(_tuple_of(int, word, "bad_word_token_ids") for word in words)
        object.__setattr__(self, "allowed_token_ids", _tuple_of(int, self.allowed_token_ids or (), "allowed_token_ids"))
        object.__setattr__(self, "bad_words", _tuple_of(str, self.bad_words or (), "bad_words"))
        object.__setattr__(self, "bad_word_token_ids", sequences)
        for name, limit in (
            ("allowed_token_ids", MAX_ALLOWED_TOKENS),
            ("bad_words", MAX_BAD_WORDS),
            ("bad_word_token_ids", 4 * MAX_BAD_WORDS),
        ):
            if len(getattr(self, name)) > limit:
                raise InvalidRequest(f"{name} may have {limit} entries, got {len(getattr(self, name))}", name)
        if not all(word.strip() for word in self.bad_words) or not all(sequences):
            raise InvalidRequest("bad_words must not be empty", "bad_words")
        if self.allowed_token_ids and {(token_id,) for token_id in self.allowed_token_ids} <= set(sequences):
            raise InvalidRequest("bad_words forbid every token of allowed_token_ids", "bad_words")

    def _check_ranges(self) -> None:
        """Raise InvalidRequest for the first value that is no number of its closed range (NaN is in none)."""
        ranges: tuple[tuple[str, float | None, float, float], ...] = (
            ("n", self.n, 1, MAX_CHOICES),
            ("max_tokens", self.max_tokens, 1, 2**31),
            ("min_tokens", self.min_tokens, 0, 2**31),
            ("temperature", self.temperature, 0, 2),
            ("top_p", self.top_p, 1e-9, 1),
            ("top_k", self.top_k, -1, 2**31),
            ("min_p", self.min_p, 0, 1),
            ("seed", self.seed, 0, MAX_SEED),
            ("repetition_penalty", self.repetition_penalty, 0.01, 10),
            ("presence_penalty", self.presence_penalty, -2, 2),
            ("frequency_penalty", self.frequency_penalty, -2, 2),
            ("logprobs", self.logprobs, 0, MAX_LOGPROBS),
            ("prompt_logprobs", self.prompt_logprobs, 0, MAX_LOGPROBS),
        )
        for name, value, low, high in ranges:
            if value is None and name in _NULLABLE:
                continue
            kind = int if name in _INTEGERS else (int, float)
            if isinstance(value, bool) or not isinstance(value, kind):
                described = "a whole number" if name in _INTEGERS else "a number"
                raise InvalidRequest(f"{name} must be {described}, got {value!r}", name)
            if not low <= value <= high:
                raise InvalidRequest(f"{name} must be between {low} and {high}, got {value}", name)


@dataclass(frozen=True, slots=True, kw_only=True)
class GenerationRequest:
    """One stream of tokens, as it travels from the router to an engine: ids only, no text.

    sampling.max_tokens and sampling.seed are set; n is fanned out before, so that choice_index names this one.
    emitted_token_ids were already given to the client by a replica that was lost: generation goes on after them.
    priority: lower comes first, where the engine's policy asks for it. tenant: who pays; shares are between tenants.
    deadline_s: if the request still waits for its first token so long after its arrival, it is ended instead of served
    late. One whose prompt is being computed by then is served.
    pooling: the prompt's embedding is wanted, and no token.
    cache_priority: how dear its pages are to the prefix cache when nobody reads them; the cheapest go first.
    """

    request_id: RequestId
    prompt_token_ids: tuple[int, ...]
    sampling: SamplingParams
    choice_index: int = 0
    emitted_token_ids: tuple[int, ...] = ()
    cache_salt: str = ""
    priority: int = 0
    tenant: str = ""
    deadline_s: float | None = None
    pooling: Pooling | None = None
    cache_priority: int = 0

    @property
    def max_tokens(self) -> int:
        if self.pooling is not None:
            return 0
        assert self.sampling.max_tokens is not None, f"{self.request_id}: max_tokens was not resolved at the door"
        return self.sampling.max_tokens

    @property
    def seed(self) -> int:
        assert self.sampling.seed is not None, f"{self.request_id}: the seed was not resolved at the door"
        return self.sampling.seed
