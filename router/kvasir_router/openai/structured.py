"""The form of the answer: OpenAI's response_format and vLLM's structured_outputs."""

from collections.abc import Mapping
from typing import Any

from kvasir_protocol.errors import InvalidRequest
from kvasir_protocol.structured import StructuredOutput, structured_output

_RESPONSE_FORMAT = "response_format"


def wanted_form(
    response_format: Mapping[str, Any] | None, structured_outputs: Mapping[str, Any] | None
) -> StructuredOutput | None:
    """What either option asks for. Raises InvalidRequest if both ask, or if one can't be understood."""
    by_format = _of_response_format(response_format) if response_format is not None else None
    if not structured_outputs:
        return by_format
    if by_format is not None:
        raise InvalidRequest("response_format and structured_outputs contradict each other; send one", _RESPONSE_FORMAT)
    return structured_output(structured_outputs)


def _of_response_format(response_format: Mapping[str, Any]) -> StructuredOutput | None:
    match response_format:
        case {"type": "text"}:
            return None
        case {"type": "json_object"}:
            return structured_output({"json_object": True}, _RESPONSE_FORMAT)
        case {"type": "json_schema", "json_schema": {"schema": dict(schema)}}:
            return structured_output({"json": schema}, _RESPONSE_FORMAT)
        case {"type": "json_schema"}:
            raise InvalidRequest("response_format: json_schema must hold an object named schema", _RESPONSE_FORMAT)
    kind = str(response_format.get("type"))[:50]
    raise InvalidRequest(
        f"response_format: type {kind!r} is not supported; supported are text, json_object and json_schema",
        _RESPONSE_FORMAT,
    )
