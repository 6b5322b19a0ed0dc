import pytest

from kvasir.bench.sse import EventReader


def test_events_come_out_whole_however_they_are_cut():
    stream = b': ping\n\ndata: {"a": 1}\n\nevent: x\r\nid: 3\r\ndata:2\r\n\r\ndata: l1\ndata: l2\n\ndata: [DONE]\n\n'
    for size in (1, 2, 3, 7, len(stream)):
        reader = EventReader()
        events = [event for start in range(0, len(stream), size) for event in reader.feed(stream[start : start + size])]
        assert events == [b'{"a": 1}', b"2", b"l1\nl2", b"[DONE]"]
        assert not reader.has_rest


@pytest.mark.parametrize("piece", [b"data: {", b"data: {}\n"])
def test_an_event_that_is_not_complete_is_a_rest(piece):
    reader = EventReader()
    assert reader.feed(piece) == []
    assert reader.has_rest
