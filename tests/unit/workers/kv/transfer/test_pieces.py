"""Memory in pieces, gone through once."""

from kvasir_workers.kv.transfer.pieces import Pieces


def pieces(*contents: bytes) -> Pieces:
    return Pieces(memoryview(bytearray(content)) for content in contents)


def rest(left: Pieces) -> list[bytes]:
    return [bytes(piece) for piece in left.next()]


def test_what_was_passed_over_is_gone() -> None:
    left = pieces(b"ab", b"", b"cde", b"f")
    left.pass_over(3)
    assert (rest(left), left.num_bytes) == ([b"de", b"f"], 3)
    left.pass_over(3)
    assert not left


def test_more_pieces_come_after_what_is_left() -> None:
    left = pieces(b"ab", b"cd")
    left.pass_over(3)
    left.add([memoryview(b"e"), memoryview(b"")])
    assert rest(left) == [b"d", b"e"]


def test_small_pieces_are_brought_together_in_room() -> None:
    left, room = pieces(b"ab", b"cd", b"ef"), memoryview(bytearray(3))
    assert [bytes(left.take(room)), bytes(left.take(room))] == [b"abc", b"def"]
    assert not left


def test_large_piece_is_given_where_it_lies() -> None:
    content = bytearray(b"abcde")
    left, room = Pieces([memoryview(content)]), memoryview(bytearray(3))
    taken = left.take(room)
    content[0] = ord("x")
    assert (bytes(taken), bytes(left.take(room))) == (b"xbc", b"de")


def test_last_room_is_filled_as_far_as_there_is_content() -> None:
    assert bytes(pieces(b"a", b"b").take(memoryview(bytearray(8)))) == b"ab"


def test_content_fills_one_piece_after_the_other() -> None:
    place = bytearray(6)
    left = Pieces([memoryview(place)[:2], memoryview(place)[2:3], memoryview(place)[3:]])
    for content in (b"abcd", b"e"):
        left.fill(memoryview(content))
    assert (bytes(place), left.num_bytes) == (b"abcde\0", 1)
