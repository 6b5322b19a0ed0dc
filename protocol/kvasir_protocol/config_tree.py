"""Plain trees, as YAML has them, and the frozen dataclasses that they describe."""

import dataclasses
import difflib
import re
import types
from collections.abc import Iterable, Mapping
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from kvasir_protocol.errors import ConfigError
from kvasir_protocol.sizes import parse_bytes

T = TypeVar("T")

_SECRET = re.compile(r"\bapi_keys\b")
"""In the path of a setting: no message shows what it holds."""

_IN_WORDS = {int: "a whole number", float: "a number", str: "a text (in quotes)", bool: "true or false"}


def merge(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    """Both trees as one; where both have a value, the one of `above`."""
    merged = dict(below)
    for key, value in above.items():
        both_are_trees = isinstance(value, Mapping) and isinstance(merged.get(key), Mapping)
        merged[key] = merge(merged[key], value) if both_are_trees else value
    return merged


def build(cls: type[T], tree: object, where: str = "") -> T:
    """The dataclass that a plain tree describes. An unknown key is an error that names the nearest right one."""
    if not isinstance(tree, Mapping):
        raise _expected("keys and values", tree, where)
    hints = get_type_hints(cls)
    known = {item.name: item for item in dataclasses.fields(cls)}  # type: ignore[arg-type]
    values: dict[str, object] = {}
    for key, value in tree.items():
        path = f"{where}.{key}" if where else str(key)
        if key not in known:
            raise ConfigError(f"unknown setting {path!r}{_advice(str(key), hints)}", path)
        values[key] = _convert(hints[key], value, path)
    for name, item in known.items():
        has_default = item.default is not dataclasses.MISSING or item.default_factory is not dataclasses.MISSING
        if name not in values and not has_default:
            raise ConfigError(f"{where + '.' if where else ''}{name} is missing", where)
    try:
        return cls(**values)
    except ConfigError as error:
        raise ConfigError(str(error), error.setting or blame(str(error), values, where)) from error


def blame(message: str, fields: Iterable[str], where: str) -> str:
    """The path of the first of the fields, or of what is in it, that a message names; or of what holds them all."""
    named = re.search("|".join(rf"\b{name}\b(?:\.\w+)*" for name in fields) or "$^", message)
    return ".".join(part for part in (where, named[0] if named else "") if part)


def _advice(key: str, hints: Mapping[str, Any]) -> str:
    """What an unknown key may have been meant as."""
    if matches := difflib.get_close_matches(key, hints, n=1):
        return f"; did you mean {matches[0]!r}?"
    homes = [name for name, hint in hints.items() if key in _fields_of(hint)]
    return f"; it belongs in {homes[0]!r}" if homes else f"; known are {', '.join(hints)}"


def _fields_of(annotation: Any) -> set[str]:
    """Of a dataclass, or of what a list of them holds."""
    held = (annotation, *get_args(annotation))
    return {item.name for each in held if dataclasses.is_dataclass(each) for item in dataclasses.fields(each)}


def _expected(what: str, value: object, path: str) -> ConfigError:
    match value:
        case _ if _SECRET.search(path):
            got = "something else, which is not shown since it may be secret"
        case list() | tuple():
            got = "a list"
        case Mapping():
            got = "keys and values"
        case _:
            got = "nothing" if value is None else repr(value)
    return ConfigError(f"{path or 'configuration'}: expected {what}, got {got}", path)


def _convert(annotation: Any, value: object, path: str) -> object:
    origin = get_origin(annotation)
    if hasattr(annotation, "__supertype__"):
        return _convert(annotation.__supertype__, value, path)
    if dataclasses.is_dataclass(annotation):
        return build(annotation, value, path)  # type: ignore[arg-type]
    if origin in (Union, types.UnionType):
        (member,) = (candidate for candidate in get_args(annotation) if candidate is not type(None))
        return None if value is None else _convert(member, value, path)
    if origin is Literal:
        if value not in get_args(annotation):
            raise _expected(f"one of {', '.join(map(repr, get_args(annotation)))}", value, path)
        return value
    if origin is tuple:
        if not isinstance(value, list | tuple):
            raise _expected("a list", value, path)
        return tuple(_convert(get_args(annotation)[0], item, f"{path}[{i}]") for i, item in enumerate(value))
    return _convert_scalar(annotation, value, path)


def _convert_scalar(expected: type, value: object, path: str) -> object:
    if expected is int and isinstance(value, str) and path.endswith("_bytes"):
        return parse_bytes(value, path)
    accepted = (int, float) if expected is float else (expected,)
    if not isinstance(value, accepted) or (isinstance(value, bool) and expected is not bool):
        raise _expected("a size such as 512MiB" if path.endswith("_bytes") else _IN_WORDS[expected], value, path)
    return value
