"""Random messages of every type, and random plain values, for hypothesis."""

import dataclasses
import types
from collections.abc import Callable
from typing import Any, Literal, NewType, TypeVar, Union, get_args, get_origin, get_type_hints

from hypothesis import strategies as st

from kvasir_protocol.messages import MAX_DEADLINE_S, HandoverTicket, Message, Reserve, Submit
from kvasir_protocol.request import MAX_LOGPROBS, MAX_SEED, SamplingParams, TokenBias

T = TypeVar("T")

MESSAGE_TYPES: tuple[type, ...] = get_args(Message)

deadlines = st.floats(min_value=0, max_value=MAX_DEADLINE_S, exclude_min=True)
page_indices = st.lists(st.integers(0, 2**31), max_size=4).map(tuple)


token_biases = st.builds(TokenBias, st.integers(0, 2**31), st.floats(-100, 100))
bad_words = st.lists(st.integers(0, 2**31), min_size=2, max_size=3).map(tuple)


@st.composite
def sampling_params(draw: st.DrawFn) -> SamplingParams:
    max_tokens = draw(st.none() | st.integers(1, 2**31))
    temperature = draw(st.floats(0, 2))
    return SamplingParams(
        n=1 if temperature == 0 else draw(st.integers(1, 128)),
        max_tokens=max_tokens,
        min_tokens=draw(st.integers(0, 2**31 if max_tokens is None else max_tokens)),
        temperature=temperature,
        top_p=draw(st.floats(1e-9, 1)),
        top_k=draw(st.integers(-1, 2**31)),
        min_p=draw(st.floats(0, 1)),
        seed=draw(st.none() | st.integers(0, MAX_SEED)),
        stop=tuple(draw(st.lists(st.text(min_size=1), max_size=3))),
        stop_token_ids=tuple(draw(st.lists(st.integers(0, 2**32), max_size=3))),
        include_stop_str_in_output=draw(st.booleans()),
        ignore_eos=draw(st.booleans()),
        repetition_penalty=draw(st.floats(0.01, 10)),
        presence_penalty=draw(st.floats(-2, 2)),
        frequency_penalty=draw(st.floats(-2, 2)),
        logprobs=draw(st.none() | st.integers(0, MAX_LOGPROBS)),
        prompt_logprobs=draw(st.none() | st.integers(0, MAX_LOGPROBS)),
        skip_special_tokens=draw(st.booleans()),
        logit_bias=tuple(draw(st.lists(token_biases, max_size=3, unique_by=lambda entry: entry.token_id))),
        allowed_token_ids=tuple(draw(st.lists(st.integers(0, 2**31), max_size=3))),
        bad_words=tuple(draw(st.lists(st.text("abc", min_size=1), max_size=3))),
        bad_word_token_ids=tuple(draw(st.lists(bad_words, max_size=3))),
    )


_FIELD_OVERRIDES: dict[type, dict[str, st.SearchStrategy[Any]]] = {
    HandoverTicket: {"deadline_s": deadlines, "first_page": st.integers(0, 2**31), "page_indices": page_indices},
    Reserve: {"deadline_s": deadlines},
    Submit: {"ticket_within_s": st.none() | deadlines},
}

_SCALARS: dict[type, st.SearchStrategy[Any]] = {
    bool: st.booleans(),
    int: st.integers(-(2**63), 2**64 - 1),
    float: st.floats(allow_nan=False),
    str: st.text(max_size=12),
    bytes: st.binary(max_size=40),
}


def any_of(annotation: Any) -> st.SearchStrategy[Any]:
    """Values of a type as it stands in a message's annotation."""
    if annotation is SamplingParams:
        return sampling_params()
    if isinstance(annotation, NewType):
        return any_of(annotation.__supertype__)
    if dataclasses.is_dataclass(annotation):
        assert isinstance(annotation, type)
        hints = get_type_hints(annotation) | _FIELD_OVERRIDES.get(annotation, {})
        build: Callable[..., Any] = annotation
        return st.builds(build, **{name: any_of(hint) for name, hint in hints.items()})
    if isinstance(annotation, st.SearchStrategy):
        return annotation
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Literal:
        return st.sampled_from(arguments)
    if origin in (Union, types.UnionType):
        return st.one_of(*(st.none() if member is type(None) else any_of(member) for member in arguments))
    if origin is tuple:
        return st.lists(any_of(arguments[0]), max_size=3).map(tuple)
    return _SCALARS[annotation]


messages: st.SearchStrategy[Any] = st.sampled_from(MESSAGE_TYPES).flatmap(any_of)

plain_values: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats() | st.text(max_size=8) | st.binary(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)
