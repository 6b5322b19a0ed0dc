"""What a caller's options ask for, and what they can't ask for."""

import pytest

from kvasir_protocol.errors import InvalidRequest, WireError
from kvasir_protocol.ids import RequestId
from kvasir_protocol.messages import Submit
from kvasir_protocol.request import GenerationRequest, SamplingParams
from kvasir_protocol.structured import MAX_STRUCTURE_BYTES, StructuredOutput, structured_output
from kvasir_protocol.wire import decode, encode, from_plain


@pytest.mark.parametrize(
    ("options", "kind", "text"),
    [
        ({"json": {"b": 1, "a": "é"}}, "json_schema", '{"b":1,"a":"é"}'),
        ({"json": '{"type": "null"}'}, "json_schema", '{"type": "null"}'),
        ({"json_object": True}, "json_object", ""),
        ({"json_object": False, "json": None, "regex": "a|b"}, "regex", "a|b"),
        ({"choice": ["a", "é"]}, "choice", '["a","é"]'),
        ({"grammar": 'start: "a"'}, "grammar", 'start: "a"'),
    ],
)
def test_one_option_makes_a_form(options: dict[str, object], kind: str, text: str) -> None:
    form = structured_output(options)
    assert (form.kind, form.text) == (kind, text)


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({}, "got nothing"),
        ({"json_object": False}, "got nothing"),
        ({"regex": "a", "json": {}}, "got regex and json"),
        ({"structural_tag": "x"}, "'structural_tag' is not supported"),
        ({"regex": ""}, "regex must be a regular expression"),
        ({"regex": 3}, "got int"),
        ({"choice": []}, "list of texts"),
        ({"choice": ["a", ""]}, "list of texts"),
        ({"choice": ["a", 1]}, "list of texts"),
        ({"choice": "ab"}, "list of texts"),
        ({"json": [1]}, "json must be a JSON schema"),
        ({"json": {"minimum": float("nan")}}, "not JSON"),
        ({"json": {"minimum": object()}}, "not JSON"),
        ({"json": {"const": "\ud800"}}, "surrogate"),
        ({"regex": "a" * (MAX_STRUCTURE_BYTES + 1)}, "the most is 65536"),
        ({"grammar": "é" * (MAX_STRUCTURE_BYTES // 2 + 1)}, "65538 bytes"),
    ],
)
def test_options_that_make_no_form_are_refused(options: dict[str, object], reason: str) -> None:
    with pytest.raises(InvalidRequest, match=reason) as caught:
        structured_output(options, "response_format")
    assert caught.value.field == "response_format"


def test_deep_schema_is_refused_without_recursion() -> None:
    schema: dict[str, object] = {}
    for _ in range(100_000):
        schema = {"items": schema}
    with pytest.raises(InvalidRequest, match="deeper than 64"):
        structured_output({"json": schema})


def test_forms_are_the_same_whatever_their_option_was_called() -> None:
    assert structured_output({"regex": "a"}, "response_format") == structured_output({"regex": "a"})


def test_sampling_parameters_take_a_map() -> None:
    form = StructuredOutput(kind="regex", text="a")
    assert SamplingParams(structured_outputs={"regex": "a"}) == SamplingParams(structured_outputs=form)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("options", "field"),
    [
        ({"structured_outputs": "regex"}, "structured_outputs"),
        ({"structured_outputs": {"regex": "a"}, "ignore_eos": True}, "ignore_eos"),
    ],
)
def test_sampling_parameters_refuse_what_contradicts(options: dict[str, object], field: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        SamplingParams(**options)  # type: ignore[arg-type]
    assert caught.value.field == field


def test_form_crosses_the_wire() -> None:
    sampling = SamplingParams(structured_outputs=structured_output({"json": {"a": ["\u0000", "é"]}}, "response_format"))
    request = GenerationRequest(request_id=RequestId("r"), prompt_token_ids=(1,), sampling=sampling)
    message = decode(encode(Submit(request=request)))
    assert message == Submit(request=request)
    assert isinstance(message, Submit)
    assert message.request.sampling.structured_outputs is not None
    assert message.request.sampling.structured_outputs.field == "response_format"


@pytest.mark.parametrize(
    "plain",
    [
        {"kind": "python", "text": "x"},
        {"kind": "regex", "text": 3},
        {"kind": "regex"},
        {"kind": "json_object", "text": "x"},
        {"kind": "regex", "text": "a" * (MAX_STRUCTURE_BYTES + 1)},
        {"kind": "regex", "text": "a", "more": 1},
    ],
)
def test_malformed_form_does_not_cross_the_wire(plain: dict[str, object]) -> None:
    with pytest.raises(WireError):
        from_plain(StructuredOutput, plain)
