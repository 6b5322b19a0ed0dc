"""How pages get to another replica."""

import os
from collections.abc import Iterator

import pytest
import torch

from kvasir_protocol.ids import PageIndex
from kvasir_workers.kv.page_memory import SHARED_MEMORY, SharedSegment
from kvasir_workers.kv.transfer.page_content import pack_pages
from kvasir_workers.kv.transfer.page_parts import PartedPages
from kvasir_workers.kv.transfer.writers import ContentWriter, SharedMemoryWriter, WriterFactory
from tests.unit.workers.fakes import make_ticket
from tests.unit.workers.kv.transfer.layouts import make_layout, page_shape, random_pages, whole_segment

NAME = f"kvasir-test-writers-{os.getpid()}"
PAGES = random_pages(6)
SOURCE = [PageIndex(i) for i in (5, 1)]
TARGET = [PageIndex(i) for i in (0, 3)]


def factory(*, allow_shared_memory: bool = True, **layout: object) -> WriterFactory:
    return WriterFactory(PartedPages.whole(make_layout(**layout), PAGES), allow_shared_memory=allow_shared_memory)  # type: ignore[arg-type]


@pytest.fixture
def segment() -> Iterator[SharedSegment]:
    made = SharedSegment.create(NAME, page_shape(4), torch.float32)
    yield made
    made.remove()


def test_segment_on_this_host_is_written_straight(segment: SharedSegment) -> None:
    assert factory().writer_for(make_ticket(4, segments=whole_segment(NAME))).label == "shared_memory"


def test_pages_written_straight_are_the_same(segment: SharedSegment) -> None:
    writer = factory().writer_for(make_ticket(4, segments=whole_segment(NAME)))
    assert isinstance(writer, SharedMemoryWriter)
    writer.write(SOURCE, TARGET)
    assert torch.equal(segment.tensor[:, :, TARGET], PAGES[:, :, SOURCE])


@pytest.mark.parametrize(
    "name", ["", "kvasir-nowhere", "..", ".", "/", "../shm", "a" * 300, "a\0b"], ids=lambda name: repr(name)[:12]
)
def test_segment_that_cannot_be_had_leaves_tcp(name: str) -> None:
    assert factory().writer_for(make_ticket(1, segments=whole_segment(name))).label == "tcp"


def test_shared_memory_may_be_forbidden(segment: SharedSegment) -> None:
    assert factory(allow_shared_memory=False).writer_for(make_ticket(4, segments=whole_segment(NAME))).label == "tcp"


def test_segment_that_is_not_made_of_our_pages_leaves_tcp(segment: SharedSegment) -> None:
    assert factory(head_dim=7).writer_for(make_ticket(1, segments=whole_segment(NAME))).label == "tcp"


def test_ticket_for_pages_beyond_the_segment_leaves_tcp(segment: SharedSegment) -> None:
    """The other side will refuse them; written straight, they would be an error of ours."""
    assert factory().writer_for(make_ticket(5, segments=whole_segment(NAME))).label == "tcp"


def test_segment_made_anew_under_its_old_name_after_a_pause_is_mapped_anew(segment: SharedSegment) -> None:
    writers = factory()
    writers.writer_for(make_ticket(4, segments=whole_segment(NAME)))
    segment.remove()
    assert writers.writer_for(make_ticket(4, segments=whole_segment(NAME))).label == "tcp"
    again = SharedSegment.create(NAME, page_shape(4), torch.float32)
    try:
        writers.writer_for(make_ticket(4, segments=whole_segment(NAME))).write(SOURCE, TARGET)
        assert torch.equal(again.tensor[:, :, TARGET], PAGES[:, :, SOURCE])
    finally:
        again.remove()
    assert not (SHARED_MEMORY / NAME).exists()


def test_tcp_sends_pages_from_where_they_lie() -> None:
    writer = factory().writer_for(make_ticket(1))
    assert isinstance(writer, ContentWriter)
    assert b"".join(writer.places(SOURCE)) == pack_pages(PAGES, SOURCE)


def test_contents_that_are_sealed_are_gone_through_page_by_page() -> None:
    writer, room = factory().writer_for(make_ticket(1)), memoryview(bytearray(700))
    assert isinstance(writer, ContentWriter)
    contents, found = writer.contents(SOURCE), bytearray()
    while contents.num_bytes:
        found += contents.take(room)
    assert found == pack_pages(PAGES, SOURCE)


def test_process_groups_are_used_where_they_are_asked_for(segment: SharedSegment) -> None:
    pages = PartedPages.whole(make_layout(), PAGES)
    writers = WriterFactory(pages, allow_shared_memory=True, uses_process_groups=True)
    assert writers.writer_for(make_ticket(4, segments=whole_segment(NAME))).label == "process_group"
