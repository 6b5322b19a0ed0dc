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
        raise ConfigError(f"{where or 'configuration'}: expected keys and values, got {tree!r}", where)
    hints = get_type_hints(cls)
    known = {item.name: item for item in dataclasses.fields(cls)}  # type: ignore[arg-type]
    values: dict[str, object] = {}
    for key, value in tree.items():
        path = f"{where}.{key}" if where else str(key)
        if key not in known:
            raise ConfigError(f"unknown setting {path!r}{_nearest(str(key), known)}", path)
        values[key] = _convert(hints[key], value, path)
    for name, item in known.items():
        has_default = item.default is not dataclasses.MISSING or item.default_factory is not dataclasses.MISSING
        if name not in values and not has_default:
            raise ConfigError(f"{where + '.' if where else ''}{name} is missing", where)
    try:
        return cls(**values)
    except ConfigError as error:
        raise ConfigError(str(error), error.setting or _blamed(str(error), values, where)) from error


def _blamed(message: str, fields: Iterable[str], where: str) -> str:
    """The first of the fields that the message of a check names, or what holds them all."""
    named = re.search("|".join(rf"\b{name}\b" for name in fields) or "$^", message)
    return ".".join(part for part in (where, named[0] if named else "") if part)


def _nearest(key: str, known: Mapping[str, object]) -> str:
    matches = difflib.get_close_matches(key, known, n=1)
    return f"; did you mean {matches[0]!r}?" if matches else f"; known are {', '.join(known)}"


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
            raise ConfigError(f"{path}: {value!r} is none of {', '.join(map(repr, get_args(annotation)))}", path)
        return value
    if origin is tuple:
        if not isinstance(value, list | tuple):
            raise ConfigError(f"{path}: expected a list, got {value!r}", path)
        return tuple(_convert(get_args(annotation)[0], item, f"{path}[{i}]") for i, item in enumerate(value))
    return _convert_scalar(annotation, value, path)


def _convert_scalar(expected: type, value: object, path: str) -> object:
    if expected is int and isinstance(value, str) and path.endswith("_bytes"):
        return parse_bytes(value, path)
    accepted = (int, float) if expected is float else (expected,)
    if not isinstance(value, accepted) or (isinstance(value, bool) and expected is not bool):
        raise ConfigError(f"{path}: expected {expected.__name__}, got {value!r}", path)
    return value
