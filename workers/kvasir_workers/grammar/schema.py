"""JSON schemas: what is not honoured to the letter is refused by name, before llguidance may pass over it."""

from collections.abc import Mapping

from kvasir_workers.grammar.refusal import Refusal

_ANNOTATIONS = frozenset(
    [
        "$schema",
        "$comment",
        "title",
        "description",
        "default",
        "examples",
        "deprecated",
        "readOnly",
        "writeOnly",
        "discriminator",
    ]
)
_MAPS_OF_SCHEMAS = frozenset(["properties", "patternProperties", "$defs", "definitions"])
_LISTS_OF_SCHEMAS = frozenset(["anyOf", "oneOf", "allOf", "prefixItems"])
_SCHEMAS = frozenset(["items", "additionalProperties"])
_COUNTS = frozenset(["minLength", "maxLength", "minItems", "maxItems", "minProperties", "maxProperties"])
_NUMBERS = frozenset(["minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf"])
_TEXTS = frozenset(["$ref", "pattern", "format"])
_OTHERS = frozenset(["type", "enum", "const", "required"])
KEYWORDS = _MAPS_OF_SCHEMAS | _LISTS_OF_SCHEMAS | _SCHEMAS | _COUNTS | _NUMBERS | _TEXTS | _OTHERS

FORMATS = frozenset(["date-time", "time", "date", "duration", "email", "hostname", "ipv4", "ipv6", "uuid", "uri"])
"""Kept by shape: a date may be the 31st of February."""

_MAX_SCHEMAS = 5_000
_MAX_EXACT = 2**53


def check_schema(schema: object) -> None:
    """Raise Refusal for the first keyword that would not be obeyed. Not recursive."""
    pending: list[tuple[str, object]] = [("", schema)]
    num_schemas = 0
    while pending:
        where, found = pending.pop()
        num_schemas += 1
        if num_schemas > _MAX_SCHEMAS:
            raise Refusal(f"the schema has more than {_MAX_SCHEMAS} parts")
        if isinstance(found, bool) and where:
            continue
        if not isinstance(found, Mapping):
            raise Refusal(f"{where or 'the schema'} must be an object, got {type(found).__name__}")
        for keyword, value in found.items():
            pending += _check_keyword(keyword, value, f"{where}/{keyword}", is_root=not where)
        _check_object(found, where)


def _check_keyword(keyword: str, value: object, where: str, *, is_root: bool) -> list[tuple[str, object]]:
    """The schemas in it."""
    if keyword in _ANNOTATIONS or (keyword == "$id" and is_root):
        return []
    if keyword not in KEYWORDS:
        raise Refusal(f"keyword {where[:200]!r} is not supported; supported are {', '.join(sorted(KEYWORDS))}")
    if keyword in _MAPS_OF_SCHEMAS:
        if not isinstance(value, Mapping):
            raise Refusal(f"{where} must be an object")
        return [(f"{where}/{name}", item) for name, item in value.items()]
    if keyword in _LISTS_OF_SCHEMAS:
        if not isinstance(value, list) or not value:
            raise Refusal(f"{where} must be a list that is not empty")
        return [(f"{where}/{index}", item) for index, item in enumerate(value)]
    if keyword in _SCHEMAS:
        if isinstance(value, list):
            raise Refusal(f"{where} as a list belongs to older drafts; use prefixItems")
        return [(where, value)]
    _check_value(keyword, value, where)
    return []


def _check_value(keyword: str, value: object, where: str) -> None:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if keyword in _COUNTS and not (isinstance(value, int) and is_number and value >= 0):
        raise Refusal(f"{where} must be a whole number from 0 on")
    if keyword in _NUMBERS and not (isinstance(value, int | float) and is_number and abs(value) <= _MAX_EXACT):
        raise Refusal(f"{where} must be a number within ±2**53")
    if keyword in _TEXTS and not isinstance(value, str):
        raise Refusal(f"{where} must be a text")
    if keyword == "format" and value not in FORMATS:
        raise Refusal(
            f"{where}: format {str(value)[:50]!r} is not supported; supported are {', '.join(sorted(FORMATS))}"
        )
    if keyword == "$ref" and not str(value).startswith("#"):
        raise Refusal(f"{where}: only references within the schema (#/…) are followed")
    if keyword in ("enum", "required") and not isinstance(value, list):
        raise Refusal(f"{where} must be a list")


def _check_object(schema: Mapping[str, object], where: str) -> None:
    """A name may be said twice where it is free: a reader then counts one property where two were written."""
    required = schema.get("required")
    num_sure = len(set(map(str, required))) if isinstance(required, list) else 0
    least = schema.get("minProperties", 0)
    if isinstance(least, int) and least > num_sure:
        raise Refusal(f"{where}/minProperties above the number of required properties is not supported; require them")
