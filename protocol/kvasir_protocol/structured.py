"""The form that an answer must have: what a caller asks for, as text that crosses the wire."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, get_args

from kvasir_protocol.errors import InvalidRequest

StructureKind = Literal["json_schema", "json_object", "regex", "choice", "grammar"]

MAX_STRUCTURE_BYTES = 64 * 2**10
"""Longer ones are written by programs gone wrong, or to see what breaks."""

MAX_NESTING = 64
"""Levels of a JSON schema; parsers of such things are recursive."""

FIELD = "structured_outputs"

_KIND_OF_OPTION: Mapping[str, StructureKind] = {
    "json": "json_schema",
    "json_object": "json_object",
    "regex": "regex",
    "choice": "choice",
    "grammar": "grammar",
}
"""vLLM's names."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StructuredOutput:
    """A form for the answer. text: the schema as JSON, the regex, the choices as a JSON list, or the grammar.

    Every answer that ends by itself has this form; one that is cut by max_tokens or by a stop of the caller's may be
    a part of it. field: what the caller's option was called, for error messages. Raises InvalidRequest.
    """

    kind: StructureKind
    text: str = ""
    field: str = field(default=FIELD, compare=False)

    def __post_init__(self) -> None:
        if self.kind not in get_args(StructureKind) or not isinstance(self.text, str):
            raise InvalidRequest(f"{self.kind!r} is no kind of structured output", self.field)
        if (self.kind == "json_object") != (self.text == ""):
            raise InvalidRequest(f"{self.field}: {self.kind} must {'' if self.text == '' else 'not '}have text", FIELD)
        try:
            num_bytes = len(self.text.encode())
        except UnicodeEncodeError as error:
            raise InvalidRequest(f"{self.field}: half of a surrogate pair is no character", self.field) from error
        if num_bytes > MAX_STRUCTURE_BYTES:
            raise InvalidRequest(
                f"{self.field}: {num_bytes} bytes; the most is {MAX_STRUCTURE_BYTES}: send a smaller one", self.field
            )


def structured_output(options: Mapping[str, object], field: str = FIELD) -> StructuredOutput:
    """What a map of vLLM's options asks for: exactly one of json, json_object, regex, choice and grammar.

    Raises InvalidRequest for two options, for none, and for one that is unknown or has the wrong type.
    """
    given = {name: value for name, value in options.items() if value is not None and value is not False}
    if unknown := sorted(map(str, given.keys() - _KIND_OF_OPTION.keys())):
        raise InvalidRequest(
            f"{field}: {unknown[0][:100]!r} is not supported; give one of {', '.join(_KIND_OF_OPTION)}", field
        )
    if len(given) != 1:
        found = " and ".join(given) or "nothing"
        raise InvalidRequest(f"{field} must hold one of {', '.join(_KIND_OF_OPTION)}; got {found}", field)
    ((name, value),) = given.items()
    return StructuredOutput(kind=_KIND_OF_OPTION[name], text=_text_of(name, value, field), field=field)


def _text_of(name: str, value: object, field: str) -> str:
    match name, value:
        case "json", str() | Mapping() | bool():
            return value if isinstance(value, str) else as_json(value, field)
        case "json_object", True:
            return ""
        case "choice", list() | tuple() if value and all(isinstance(item, str) and item for item in value):
            return as_json(list(value), field)
        case "regex" | "grammar", str() if value:
            return str(value)
    wanted = {
        "json": "a JSON schema",
        "json_object": "true",
        "choice": "a list of texts that are not empty",
        "regex": "a regular expression",
        "grammar": "a grammar",
    }
    raise InvalidRequest(f"{field}: {name} must be {wanted[name]}, got {type(value).__name__}", field)


def as_json(value: object, field: str) -> str:
    """JSON text, keys in their order. Raises InvalidRequest for what JSON can't say, or too deeply nested."""
    _check_nesting(value, field)
    try:
        return json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    except (TypeError, ValueError) as error:
        raise InvalidRequest(f"{field}: not JSON: {error}", field) from error


def _check_nesting(value: object, field: str) -> None:
    """Level by level, without recursion."""
    level = [value]
    for _ in range(MAX_NESTING):
        level = [
            child
            for item in level
            if isinstance(item, Mapping | list | tuple)
            for child in (item.values() if isinstance(item, Mapping) else item)
        ]
        if not level:
            return
    raise InvalidRequest(f"{field}: nested deeper than {MAX_NESTING} levels; make it flatter", field)
