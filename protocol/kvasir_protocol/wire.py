"""Messages to bytes and back: one msgpack map each, every field checked on arrival.

    {"v": 1, "type": "Abort", "request_id": "cmpl-1/0"}

A field that has its default does not travel: most of a token's have it, and both sides are of one version. Nothing is
ever unpickled: the dataclasses in `messages.py` are the only things that can come out of `decode`.
"""

import dataclasses
import reprlib
import types
from collections.abc import Callable
from typing import Any, Literal, NewType, TypeVar, Union, cast, get_args, get_origin, get_type_hints

import msgpack

from kvasir_protocol.errors import InvalidRequest, WireError
from kvasir_protocol.messages import Message

WIRE_VERSION = 1

MAX_MESSAGE_BYTES = 64 * 2**20
"""Room for a prompt of millions of tokens; pages travel in smaller pieces."""

_SMALL_FRAME_BYTES = 4096
"""Up to here it does no harm if a list announces as many items as the frame has bytes, at each level of nesting."""

T = TypeVar("T")
Reader = Callable[[object], object]
Writer = Callable[[Any], object]


def encode(message: Message) -> bytes:
    """One message as bytes."""
    cls = type(message)
    body = {"v": WIRE_VERSION, "type": cls.__name__}
    for name, default, write in _MESSAGE_WRITERS[cls]:
        value = getattr(message, name)
        if value != default:
            body[name] = value if write is None else write(value)
    return cast(bytes, msgpack.packb(body, use_bin_type=True))


def decode(frame: bytes) -> Message:
    """The message in frame. Raises WireError if it is too large, malformed, unknown or ill-typed."""
    if len(frame) > MAX_MESSAGE_BYTES:
        raise WireError(f"message of {len(frame)} bytes; the most is {MAX_MESSAGE_BYTES}")
    body = _unpack(frame)
    if not isinstance(body, dict):
        raise WireError(f"a message is a map, got {type(body).__name__}")
    version, name = body.pop("v", None), body.pop("type", None)
    if type(version) is not int or version != WIRE_VERSION:
        raise WireError(
            f"wire version {reprlib.repr(version)}, this side speaks {WIRE_VERSION}: run the same release everywhere"
        )
    reader = _MESSAGE_READERS.get(name) if isinstance(name, str) else None
    if reader is None:
        raise WireError(f"unknown message type {reprlib.repr(name)}")
    return cast(Message, reader(body))


def _unpack(frame: bytes) -> object:
    """The plain value in frame.

    msgpack sets memory aside for what a list announces before it looks for the items, so a larger frame is walked
    once without building anything: a list then has no more items than the frame has bytes.
    """
    try:
        if len(frame) > _SMALL_FRAME_BYTES:
            walker = msgpack.Unpacker(read_size=len(frame), max_buffer_size=len(frame))
            walker.feed(frame)
            walker.skip()
        return msgpack.unpackb(frame, raw=False, strict_map_key=True, use_list=False)
    except (ValueError, msgpack.exceptions.UnpackException) as error:
        raise WireError(f"not msgpack: {error or type(error).__name__}") from error


def to_plain(value: Any) -> Any:
    """Dataclasses as dictionaries all the way down; other values as they are."""
    if dataclasses.is_dataclass(value):
        return {name: to_plain(getattr(value, name)) for name in _field_names(type(value))}
    if isinstance(value, tuple) and value and dataclasses.is_dataclass(value[0]):
        return [to_plain(item) for item in value]
    return value


def from_plain(cls: type[T], value: object) -> T:
    """The dataclass that to_plain was given. Raises WireError that names the field."""
    return cast(T, _reader_of(cls)(value))


_FIELD_NAMES: dict[type, tuple[str, ...]] = {}


def _field_names(cls: type) -> tuple[str, ...]:
    if cls not in _FIELD_NAMES:
        _FIELD_NAMES[cls] = tuple(field.name for field in dataclasses.fields(cls))
    return _FIELD_NAMES[cls]


_READERS: dict[type, Reader] = {}


def _reader_of(annotation: Any) -> Reader:
    """A function that checks a plain value against a type annotation and builds it."""
    if isinstance(annotation, NewType):
        return _reader_of(annotation.__supertype__)
    if dataclasses.is_dataclass(annotation):
        cls = cast(type, annotation)
        if cls not in _READERS:
            _READERS[cls] = _dataclass_reader(cls)
        return _READERS[cls]
    origin = get_origin(annotation)
    if origin is Literal:
        return _choice_reader(get_args(annotation))
    if origin in (Union, types.UnionType):
        return _union_reader(get_args(annotation))
    if origin is tuple:
        return _tuple_reader(get_args(annotation))
    return _scalar_reader(annotation)


def _plain_type(annotation: Any) -> type | None:
    """int or str if exactly these travel as they are, NewTypes of them as well."""
    plain = annotation.__supertype__ if isinstance(annotation, NewType) else annotation
    return plain if plain in (int, str) else None


def _scalar_reader(expected: type) -> Reader:
    accepted = (int, float) if expected is float else (expected,)

    def read(value: object) -> object:
        if not isinstance(value, accepted) or (isinstance(value, bool) and expected is not bool):
            raise WireError(f"expected {expected.__name__}, got {type(value).__name__}")
        return value

    return read


def _choice_reader(choices: tuple[object, ...]) -> Reader:
    def read(value: object) -> object:
        if not isinstance(value, str) or value not in choices:
            raise WireError(f"expected one of {choices}, got {reprlib.repr(value)}")
        return value

    return read


def _union_reader(members: tuple[Any, ...]) -> Reader:
    """Only `X | None` is needed."""
    (member,) = (candidate for candidate in members if candidate is not type(None))
    inner = _reader_of(member)
    return lambda value: None if value is None else inner(value)


def _tuple_reader(arguments: tuple[Any, ...]) -> Reader:
    assert len(arguments) == 2 and arguments[1] is Ellipsis, f"only tuple[X, ...] travels, not tuple{arguments}"
    item, exact = _reader_of(arguments[0]), {_plain_type(arguments[0])}

    def read(value: object) -> object:
        if not isinstance(value, list | tuple):
            raise WireError(f"expected a list, got {type(value).__name__}")
        # Long prompts: one look at all types takes a tenth of one call for each item.
        return tuple(value) if set(map(type, value)) == exact else tuple(map(item, value))

    return read


def _dataclass_reader(cls: type) -> Reader:
    hints = get_type_hints(cls)
    readers = {field.name: _reader_of(hints[field.name]) for field in dataclasses.fields(cls)}
    required = {
        field.name
        for field in dataclasses.fields(cls)
        if field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
    }

    def read(value: object) -> object:
        if not isinstance(value, dict):
            raise WireError(f"{cls.__name__}: expected a map, got {type(value).__name__}")
        if not value.keys() <= readers.keys():
            unknown = value.keys() - readers.keys()
            raise WireError(f"{cls.__name__}: unknown fields {reprlib.repr(sorted(map(str, unknown)))}")
        if not required <= value.keys():
            raise WireError(f"{cls.__name__}: missing fields {sorted(required - value.keys())}")
        fields = {}
        for name, item in value.items():
            try:
                fields[name] = readers[name](item)
            except WireError as error:
                raise WireError(f"{cls.__name__}.{name}: {error}") from error
        try:
            return cls(**fields)
        except InvalidRequest as error:
            raise WireError(f"{cls.__name__}: {error}") from error

    return read


Fields = tuple[tuple[str, object, Writer | None], ...]
"""Of a dataclass: name, default (or MISSING, which nothing equals), and how to make the value plain, if it is not."""

_WRITERS: dict[type, Writer] = {}


def _fields_of(cls: type) -> Fields:
    hints = get_type_hints(cls)
    return tuple((field.name, field.default, _writer_of(hints[field.name])) for field in dataclasses.fields(cls))


def _writer_of(annotation: Any) -> Writer | None:
    """A function that makes values of this type plain; None where they are."""
    if dataclasses.is_dataclass(annotation):
        cls = cast(type, annotation)
        if cls not in _WRITERS:
            _WRITERS[cls] = _dataclass_writer(_fields_of(cls))
        return _WRITERS[cls]
    origin = get_origin(annotation)
    if origin in (Union, types.UnionType):
        inner = next(filter(None, map(_writer_of, get_args(annotation))), None)
        return inner and (lambda value: None if value is None else inner(value))
    if origin is tuple:
        item = _writer_of(get_args(annotation)[0])
        return item and (lambda values: list(map(item, values)))
    return None


def _dataclass_writer(fields: Fields) -> Writer:
    def write(value: Any) -> object:
        plain = {}
        for name, default, inner in fields:
            item = getattr(value, name)
            if item != default:
                plain[name] = item if inner is None else inner(item)
        return plain

    return write


_MESSAGE_WRITERS: dict[type, Fields] = {cls: _fields_of(cls) for cls in get_args(Message)}
_MESSAGE_READERS: dict[str, Reader] = {cls.__name__: _reader_of(cls) for cls in get_args(Message)}
