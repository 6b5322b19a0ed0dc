"""Messages to bytes and back, and what becomes of frames that are no messages."""

import dataclasses
import tracemalloc
from typing import Any

import msgpack
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvasir_protocol.errors import WireError
from kvasir_protocol.events import TokenOutput
from kvasir_protocol.ids import RequestId
from kvasir_protocol.messages import Abort, Message, Reserve, Submit, Tokens
from kvasir_protocol.request import GenerationRequest, SamplingParams
from kvasir_protocol.wire import MAX_MESSAGE_BYTES, WIRE_VERSION, decode, encode, from_plain, to_plain
from tests.unit.protocol.any_message import MESSAGE_TYPES, any_of, messages, plain_values

REQUEST = GenerationRequest(request_id=RequestId("r"), prompt_token_ids=(1, 2), sampling=SamplingParams())


def pack(value: object) -> bytes:
    packed: bytes = msgpack.packb(value)
    return packed


def body_of(message: Message) -> dict[str, Any]:
    body: dict[str, Any] = msgpack.unpackb(encode(message))
    return body


def decode_or_refuse(frame: bytes) -> Message | None:
    """None for a WireError; any other exception fails the test."""
    try:
        return decode(frame)
    except WireError:
        return None


@pytest.mark.parametrize("kind", MESSAGE_TYPES, ids=lambda kind: kind.__name__)
@settings(max_examples=25)
@given(data=st.data())
def test_every_message_comes_back_as_it_was_sent(kind: type, data: st.DataObject) -> None:
    message = data.draw(any_of(kind))
    assert decode(encode(message)) == message


@settings(max_examples=50)
@given(message=messages)
def test_plain_values_of_a_dataclass_build_it_again(message: Message) -> None:
    assert from_plain(type(message), to_plain(message)) == message


@settings(max_examples=300)
@given(frame=st.binary(max_size=200))
def test_random_bytes_are_no_message(frame: bytes) -> None:
    assert decode_or_refuse(frame) is None


@settings(max_examples=300)
@given(value=plain_values)
def test_random_msgpack_is_no_message(value: object) -> None:
    assert decode_or_refuse(pack(value)) is None


@settings(max_examples=200)
@given(kind=st.sampled_from([cls.__name__ for cls in MESSAGE_TYPES]), fields=st.dictionaries(st.text(), plain_values))
def test_random_fields_of_a_known_type_are_refused_or_read(kind: str, fields: dict[str, object]) -> None:
    decode_or_refuse(pack({**fields, "v": WIRE_VERSION, "type": kind}))


@settings(max_examples=200)
@given(message=messages, position=st.integers(0, 2**16), byte=st.integers(0, 255))
def test_good_message_with_a_changed_byte_is_refused_or_read(message: Message, position: int, byte: int) -> None:
    frame = bytearray(encode(message))
    frame[position % len(frame)] = byte
    decode_or_refuse(bytes(frame))


@settings(max_examples=200)
@given(message=messages, length=st.integers(0, 2**16))
def test_truncated_message_is_refused(message: Message, length: int) -> None:
    frame = encode(message)
    assert decode_or_refuse(frame[: length % len(frame)]) is None


@settings(max_examples=300)
@given(message=messages, data=st.data(), value=plain_values)
def test_message_with_any_part_replaced_is_refused_or_read(message: Message, data: st.DataObject, value: Any) -> None:
    body = body_of(message)
    node: Any = body
    while True:
        keys = list(node) if isinstance(node, dict) else list(range(len(node)))
        key = data.draw(st.sampled_from(keys))
        if not isinstance(node[key], dict | list) or not node[key] or data.draw(st.booleans()):
            break
        node = node[key]
    node[key] = value
    decode_or_refuse(pack(body))


FIELDS = [(cls, field.name) for cls in MESSAGE_TYPES for field in dataclasses.fields(cls)]


@pytest.mark.parametrize(("kind", "name"), FIELDS, ids=lambda item: getattr(item, "__name__", item))
@settings(max_examples=2)
@given(data=st.data())
def test_field_of_a_wrong_type_is_refused_by_name(kind: type, name: str, data: st.DataObject) -> None:
    body = body_of(data.draw(any_of(kind))) | {name: msgpack.ExtType(5, b"?")}
    with pytest.raises(WireError, match=rf"{kind.__name__}\.{name}: "):
        decode(pack(body))


@pytest.mark.parametrize("kind", MESSAGE_TYPES, ids=lambda kind: kind.__name__)
@settings(max_examples=2)
@given(data=st.data())
def test_unknown_field_is_refused_by_name(kind: type, data: st.DataObject) -> None:
    body = body_of(data.draw(any_of(kind))) | {"surprise": 1}
    with pytest.raises(WireError, match=r"unknown fields .*surprise"):
        decode(pack(body))


@pytest.mark.parametrize("kind", [kind for kind in MESSAGE_TYPES if dataclasses.fields(kind)], ids=lambda k: k.__name__)
@settings(max_examples=2)
@given(data=st.data())
def test_missing_field_is_refused_by_name(kind: type, data: st.DataObject) -> None:
    required = [field.name for field in dataclasses.fields(kind) if field.default is dataclasses.MISSING]
    name = data.draw(st.sampled_from(required))
    body = body_of(data.draw(any_of(kind)))
    del body[name]
    with pytest.raises(WireError, match=rf"missing fields \['{name}'\]"):
        decode(pack(body))


def test_fields_with_a_default_may_be_left_out_and_are() -> None:
    body = body_of(Submit(request=REQUEST))
    assert "ticket_within_s" not in body and "priority" not in body["request"]
    assert decode(pack(body | {"ticket_within_s": None})) == decode(pack(body)) == Submit(request=REQUEST)


def test_token_of_a_stream_travels_in_few_bytes() -> None:
    outputs = tuple(TokenOutput(request_id=RequestId("r"), first_index=i, token_ids=(i,)) for i in range(8))
    (output, *_) = body_of(Tokens(outputs=outputs))["outputs"]
    assert output == {"request_id": "r", "first_index": 0, "token_ids": [0]}


@pytest.mark.parametrize("ids", [[1, True], [1, None], [1, 2.0], ["1"], [[1]]])
def test_list_with_one_wrong_item_is_refused(ids: list[object]) -> None:
    body = body_of(Submit(request=REQUEST))
    body["request"]["prompt_token_ids"] = ids
    with pytest.raises(WireError, match="prompt_token_ids: expected int"):
        decode(pack(body))


@pytest.mark.parametrize("version", [0, 2, -1, None, "1", True, 1.0, [1], 2**64 - 1])
def test_another_wire_version_is_refused(version: object) -> None:
    with pytest.raises(WireError, match="run the same release everywhere"):
        decode(pack({"v": version, "type": "Ping"}))


@pytest.mark.parametrize("name", [None, "", "ping", "Sampling", "GenerationRequest", 5, ["Ping"], {"Ping": 1}])
def test_unknown_message_type_is_refused(name: object) -> None:
    with pytest.raises(WireError, match="unknown message type"):
        decode(pack({"v": WIRE_VERSION, "type": name}))


@pytest.mark.parametrize("value", [None, 1, "Ping", [], [1, {"v": 1}], b"", 1.5, True])
def test_message_that_is_no_map_is_refused(value: object) -> None:
    with pytest.raises(WireError, match="a message is a map"):
        decode(pack(value))


def test_bool_is_no_integer() -> None:
    body = body_of(Reserve(request=REQUEST, deadline_s=1.0))
    body["request"]["priority"] = True
    with pytest.raises(WireError, match=r"Reserve\.request: GenerationRequest\.priority: expected int, got bool"):
        decode(pack(body))


def test_whole_number_may_stand_for_a_float() -> None:
    body = body_of(Reserve(request=REQUEST, deadline_s=1.0)) | {"deadline_s": 1}
    assert decode(pack(body)) == Reserve(request=REQUEST, deadline_s=1.0)


def test_text_is_no_list() -> None:
    body = body_of(Submit(request=REQUEST))
    body["request"]["prompt_token_ids"] = "12"
    with pytest.raises(WireError, match="expected a list, got str"):
        decode(pack(body))


@pytest.mark.parametrize(("name", "value"), [("temperature", float("nan")), ("top_p", 0.0), ("stop", [""])])
def test_sampling_out_of_range_is_refused_on_arrival(name: str, value: object) -> None:
    body = body_of(Submit(request=REQUEST))
    body["request"]["sampling"][name] = value
    with pytest.raises(WireError, match="SamplingParams: "):
        decode(pack(body))


def test_frame_over_the_limit_is_refused_unread() -> None:
    with pytest.raises(WireError, match="the most is"):
        decode(bytes(MAX_MESSAGE_BYTES + 1))


@pytest.mark.parametrize("opening", [b"\x91", b"\x81\xa1v", b"\xdc\x00\x01"])
def test_deep_nesting_is_refused(opening: bytes) -> None:
    assert decode_or_refuse(opening * 100_000 + b"\xc0") is None


def test_lists_that_announce_more_than_the_frame_holds_take_no_memory() -> None:
    """Each of these headers announces 61,440 items: built as announced, a frame of 64 kB would take 80 MB."""
    frame = (b"\xdd\x00\x00\xf0\x00" * 1000).ljust(2**16, b"\xc0")
    tracemalloc.start()
    try:
        assert decode_or_refuse(frame) is None
        assert tracemalloc.get_traced_memory()[1] < 2**20
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize(
    "body",
    [
        b"\x81\xc0\x01",
        b"\x81\x01\x01",
        b"\x82\xa1v\x01\xa4type\xa1\xff",
        b"\xc7\x0c\xff" + b"\xff" * 12,
        encode(Abort(request_id=RequestId("r"))) + b"\x00",
        b"\x82\xa1v\x01\xa4type\xc4\x04Ping",
        b"\x83\xa1v\x01\xa4type\xa4Ping\xc4\x01x\x01",
    ],
    ids=["null-key", "number-key", "bad-utf8", "bad-timestamp", "more-bytes", "binary-type", "binary-key"],
)
def test_odd_msgpack_is_refused(body: bytes) -> None:
    assert decode_or_refuse(body) is None


def test_refusal_does_not_repeat_a_long_value() -> None:
    with pytest.raises(WireError) as caught:
        decode(pack({"v": WIRE_VERSION, "type": "x" * 100_000}))
    assert len(str(caught.value)) < 200
