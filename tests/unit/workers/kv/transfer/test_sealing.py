"""Contents that only their writer can have sealed, in order."""

import pytest

from kvasir_workers.kv.transfer.pieces import Pieces
from kvasir_workers.kv.transfer.sealing import (
    BLOCK_BYTES,
    KEY_BYTES,
    TAG_BYTES,
    Opening,
    PageSeal,
    proof_of,
    sealed_blocks,
    sealed_size,
)

KEY = b"k" * KEY_BYTES
HEADER, CONTENT = b"pages 1, 2", memoryview(bytes(range(100)))


def test_what_was_sealed_opens_in_order() -> None:
    writer, reader = PageSeal(KEY), PageSeal(KEY)
    for content in (CONTENT, CONTENT[50:], memoryview(b"")):
        assert reader.open(HEADER, memoryview(writer.seal(HEADER, content))) == content


def test_content_can_not_be_read_along() -> None:
    sealed = PageSeal(KEY).seal(HEADER, CONTENT)
    assert bytes(CONTENT[:16]) not in bytes(sealed)
    assert len(sealed) == len(CONTENT) + TAG_BYTES


def test_seal_and_content_may_use_room_that_is_larger() -> None:
    writer, reader = PageSeal(KEY), PageSeal(KEY)
    sealed = writer.seal(HEADER, CONTENT, bytearray(500))
    assert reader.open(HEADER, sealed, bytearray(500)) == CONTENT


def test_proof_is_that_of_one_key_and_does_not_tell_it() -> None:
    assert proof_of(KEY) == proof_of(KEY) != proof_of(b"x" * KEY_BYTES)
    assert KEY not in proof_of(KEY)


def test_equal_contents_are_sealed_differently() -> None:
    writer = PageSeal(KEY)
    assert writer.seal(HEADER, CONTENT) != writer.seal(HEADER, CONTENT)


@pytest.mark.parametrize("harm", ["key", "header", "content", "length", "order"])
def test_broken_seal_opens_to_nothing_and_the_next_good_one_opens(harm: str) -> None:
    writer, reader = PageSeal(KEY), PageSeal(KEY)
    sealed = writer.seal(HEADER, CONTENT)
    bad = bytearray(sealed)
    if harm == "key":
        bad = bytearray(PageSeal(b"x" * KEY_BYTES).seal(HEADER, CONTENT))
    elif harm == "content":
        bad[3] ^= 1
    elif harm == "length":
        del bad[5:]
    elif harm == "order":
        bad = bytearray(writer.seal(HEADER, CONTENT))
    assert reader.open(b"pages 1, 3" if harm == "header" else HEADER, memoryview(bad)) is None
    assert reader.open(HEADER, memoryview(sealed)) == CONTENT


@pytest.mark.parametrize("num_bytes", [1, BLOCK_BYTES - 1, BLOCK_BYTES, BLOCK_BYTES + 1, 2 * BLOCK_BYTES + 100])
@pytest.mark.parametrize("piece_bytes", [1000, BLOCK_BYTES + 5000])
def test_contents_in_pieces_come_block_by_block_to_other_pieces(num_bytes: int, piece_bytes: int) -> None:
    content = bytes(index * index % 251 for index in range(num_bytes))
    pieces = [memoryview(content)[start : start + piece_bytes] for start in range(0, num_bytes, piece_bytes)]
    place = bytearray(num_bytes)
    places = [memoryview(place)[:7], memoryview(place)[7:]]
    opening, num_sealed = Opening(PageSeal(KEY), HEADER, Pieces(places)), 0
    for block in sealed_blocks(PageSeal(KEY), HEADER, Pieces(pieces)):
        assert len(block) == opening.num_wanted
        opening.open(block)
        num_sealed += len(block)
    assert (place, opening.num_wanted, num_sealed) == (content, 0, sealed_size(num_bytes))
    assert not opening.is_broken


def test_blocks_open_in_their_order_only() -> None:
    contents = Pieces([memoryview(bytes(2 * BLOCK_BYTES))])
    _, second = map(bytes, sealed_blocks(PageSeal(KEY), HEADER, contents))
    place = bytearray(b"x") * (2 * BLOCK_BYTES)
    opening = Opening(PageSeal(KEY), HEADER, Pieces([memoryview(place)]))
    opening.open(memoryview(second))
    assert (opening.is_broken, opening.num_wanted) == (True, 0)
    assert place == bytearray(b"x") * (2 * BLOCK_BYTES)
