"""OpenAI's response_format and vLLM's structured_outputs as one form."""

import pytest

from kvasir_protocol.errors import InvalidRequest
from kvasir_protocol.structured import StructuredOutput
from kvasir_router.openai.structured import wanted_form

SCHEMA = {"type": "object", "properties": {"b": {}, "a": {}}}
SCHEMA_TEXT = '{"type":"object","properties":{"b":{},"a":{}}}'


@pytest.mark.parametrize(
    ("response_format", "structured_outputs", "expected"),
    [
        (None, None, None),
        ({"type": "text"}, None, None),
        ({"type": "text"}, {}, None),
        ({"type": "json_object"}, None, StructuredOutput(kind="json_object")),
        (
            {"type": "json_schema", "json_schema": {"name": "x", "strict": True, "schema": SCHEMA}},
            None,
            StructuredOutput(kind="json_schema", text=SCHEMA_TEXT),
        ),
        (None, {"json": SCHEMA}, StructuredOutput(kind="json_schema", text=SCHEMA_TEXT)),
        ({"type": "text"}, {"regex": "a+"}, StructuredOutput(kind="regex", text="a+")),
        (None, {"choice": ["a", "b"]}, StructuredOutput(kind="choice", text='["a","b"]')),
        (None, {"grammar": "root ::= [a]"}, StructuredOutput(kind="grammar", text="root ::= [a]")),
        (None, {"json_object": True}, StructuredOutput(kind="json_object")),
    ],
)
def test_either_option_asks_for_a_form(
    response_format: dict[str, object] | None,
    structured_outputs: dict[str, object] | None,
    expected: StructuredOutput | None,
) -> None:
    assert wanted_form(response_format, structured_outputs) == expected


@pytest.mark.parametrize(
    ("response_format", "structured_outputs", "field"),
    [
        ({"type": "json_object"}, {"regex": "a"}, "response_format"),
        ({"type": "structural_tag"}, None, "response_format"),
        ({}, None, "response_format"),
        ({"type": "json_schema"}, None, "response_format"),
        ({"type": "json_schema", "json_schema": {"name": "x"}}, None, "response_format"),
        ({"type": "json_schema", "json_schema": {"schema": "x"}}, None, "response_format"),
        (None, {"regex": "a", "choice": ["b"]}, "structured_outputs"),
        (None, {"json": None}, "structured_outputs"),
        (None, {"structural_tag": "x"}, "structured_outputs"),
    ],
)
def test_contradictory_or_unknown_options_are_refused_by_name(
    response_format: dict[str, object] | None, structured_outputs: dict[str, object] | None, field: str
) -> None:
    with pytest.raises(InvalidRequest) as caught:
        wanted_form(response_format, structured_outputs)
    assert caught.value.field == field
