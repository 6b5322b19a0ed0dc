"""The published layout of page events, byte by byte, and what a reader makes of others' messages."""

from contextlib import suppress

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvasir_protocol.errors import WireError
from kvasir_protocol.kv_events import (
    END_SEQUENCE,
    AllBlocksCleared,
    BlockRemoved,
    BlockStored,
    KvEvent,
    KvEventBatch,
    decode_batch,
    encode_batch,
    parse_answer,
    parse_publication,
    parse_sequence,
    sequence_bytes,
)
from tests.unit.protocol.any_message import plain_values

STORED = BlockStored(block_hashes=(b"h1", b"h2"), parent_block_hash=b"h0", token_ids=(1, 2, 3, 4), block_size=2)


def batch_of(*events: KvEvent) -> KvEventBatch:
    return KvEventBatch(timestamp=1.5, events=events, data_parallel_rank=0)


def test_batch_is_an_array_of_maps_with_a_type() -> None:
    assert msgpack.unpackb(encode_batch(batch_of(STORED, BlockRemoved(block_hashes=(b"h1",)), AllBlocksCleared()))) == [
        1.5,
        [
            {
                "type": "BlockStored",
                "block_hashes": [b"h1", b"h2"],
                "parent_block_hash": b"h0",
                "token_ids": [1, 2, 3, 4],
                "block_size": 2,
                "lora_id": None,
                "medium": "GPU",
                "lora_name": None,
            },
            {"type": "BlockRemoved", "block_hashes": [b"h1"], "medium": "GPU"},
            {"type": "AllBlocksCleared"},
        ],
        0,
    ]


def test_salt_travels_in_the_extra_keys_of_its_first_page() -> None:
    stored = BlockStored(
        block_hashes=(b"h1", b"h2"),
        parent_block_hash=None,
        token_ids=(1, 2),
        block_size=1,
        extra_keys=(("tenant",), None),
    )
    (plain,) = msgpack.unpackb(encode_batch(batch_of(stored)))[1]
    assert plain["extra_keys"] == [["tenant"], None]
    assert decode_batch(encode_batch(batch_of(stored))) == batch_of(stored)


hashes = st.binary(min_size=32, max_size=32) | st.integers(-(2**63), 2**64 - 1)


@st.composite
def stored_events(draw: st.DrawFn) -> BlockStored:
    names, block_size = draw(st.lists(hashes, max_size=3)), draw(st.integers(1, 4))
    tokens = draw(
        st.lists(st.integers(0, 2**32 - 1), min_size=len(names) * block_size, max_size=len(names) * block_size)
    )
    return BlockStored(
        block_hashes=tuple(names),
        parent_block_hash=draw(st.none() | hashes),
        token_ids=tuple(tokens),
        block_size=block_size,
        medium=draw(st.none() | st.sampled_from(["GPU", "CPU"])),
        lora_name=draw(st.sampled_from([None, "", "adapter"])),
        extra_keys=draw(st.none() | st.just(tuple(("salt",) for _ in names))),
    )


removed_events = st.builds(BlockRemoved, block_hashes=st.lists(hashes, max_size=3).map(tuple))
events = st.lists(stored_events() | removed_events | st.just(AllBlocksCleared()), max_size=4)


@given(events, st.none() | st.integers(0, 8))
def test_whatever_is_written_is_read_again(some: list[KvEvent], rank: int | None) -> None:
    batch = KvEventBatch(timestamp=2.0, events=tuple(some), data_parallel_rank=rank)
    assert decode_batch(encode_batch(batch)) == batch


@pytest.mark.parametrize(
    ("old", "expected"),
    [
        (["BlockStored", [7, 8], None, [1, 2], 1, None], (7, 8)),
        (["BlockStored", [7, 8], None, [1, 2], 1, None, "GPU"], (7, 8)),
        (["BlockStored", [7, 8], None, [1, 2], 1, None, "GPU", "adapter", None, 0, "full", None], (7, 8)),
        (["BlockRemoved", [7]], (7,)),
        (["BlockRemoved", [7], "GPU", 0], (7,)),
    ],
)
def test_positional_arrays_of_older_releases_are_read(old: list[object], expected: tuple[int, ...]) -> None:
    (event,) = decode_batch(msgpack.packb([0.0, [old]])).events
    assert isinstance(event, BlockStored | BlockRemoved)
    assert event.block_hashes == expected
    if len(old) > 6:
        assert event.medium == "GPU"


def test_cleared_is_read_as_an_array_too() -> None:
    assert decode_batch(msgpack.packb([0.0, [["AllBlocksCleared"]], 3])) == KvEventBatch(
        timestamp=0.0, events=(AllBlocksCleared(),), data_parallel_rank=3
    )


def test_unknown_fields_and_kinds_are_passed_over() -> None:
    later = {"type": "BlockRemoved", "block_hashes": [b"h"], "group_idx": 0, "locality": "LOCAL"}
    batch = decode_batch(msgpack.packb([0.0, [later, {"type": "BlockMoved"}, ["BlockMoved", 1]], None]))
    assert batch.events == (BlockRemoved(block_hashes=(b"h",), medium=None),)


@pytest.mark.parametrize(
    "body",
    [
        7,
        [],
        [0.0, 5, None],
        ["now", [], None],
        [0.0, [5], None],
        [0.0, [[5]], None],
        [0.0, [{"type": "BlockRemoved"}], None],
        [0.0, [{"type": "BlockRemoved", "block_hashes": ["text"]}], None],
        [0.0, [["BlockStored", [1], None, [1, 2, 3], 2, None]], None],
        [0.0, [["BlockStored", [1], None, [1.5], 1, None]], None],
        [0.0, [["BlockStored", [1], "parent", [1], 1, None]], None],
    ],
)
def test_malformed_batch_is_a_wire_error(body: object) -> None:
    with pytest.raises(WireError):
        decode_batch(msgpack.packb(body))


@given(st.binary(max_size=40) | plain_values.map(msgpack.packb))
def test_no_frame_does_worse_than_a_wire_error(frame: bytes) -> None:
    with suppress(WireError):
        decode_batch(frame)


def test_frames_hold_the_sequence_number_in_network_order() -> None:
    assert sequence_bytes(258) == b"\0\0\0\0\0\0\1\2"
    frame = encode_batch(batch_of(STORED))
    assert parse_publication([b"kv@r@m", sequence_bytes(258), frame]) == (258, batch_of(STORED))
    assert parse_answer([b"", sequence_bytes(258), frame]) == (258, batch_of(STORED))


def test_answers_end_with_minus_one() -> None:
    assert parse_sequence(END_SEQUENCE) == -1
    assert parse_answer([b"", END_SEQUENCE, b""]) is None


@pytest.mark.parametrize("frames", [[], [b"", b""], [b"topic", b"short", b""], [b"t", bytes(8), b"", b""]])
def test_wrong_frames_are_a_wire_error(frames: list[bytes]) -> None:
    with pytest.raises(WireError):
        parse_publication(frames)
    with pytest.raises(WireError):
        parse_answer(frames)
