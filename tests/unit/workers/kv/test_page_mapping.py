"""Pages are mapped before they are used: which first, and that nothing in them changes."""

import os
from collections.abc import Iterator

import pytest
import torch

from kvasir_workers.kv.page_mapping import PageMapping, map_for, mapping_of
from kvasir_workers.kv.page_memory import SharedSegment
from tests.mapped_segments import mapped_bytes
from tests.unit.workers.fakes import Clock

NAME = f"kvasir-test-mapping-{os.getpid()}"

SHAPE = (2, 2, 40, 16, 8, 128)
"""Pages of 64 KiB in float32: 16 of them are mapped at a time."""

PAGE_BYTES = 16 * 8 * 128 * 4


@pytest.fixture
def segment() -> Iterator[SharedSegment]:
    made = SharedSegment.create(NAME, SHAPE, torch.float32)
    yield made
    made.remove()


def test_whole_segment_is_mapped_in_the_end(segment: SharedSegment) -> None:
    before = mapped_bytes(NAME)
    mapping = PageMapping(segment.tensor)
    while mapping.go_on():
        pass
    assert (before, mapped_bytes(NAME)) == (0, segment.tensor.nbytes)


def test_what_was_written_stays(segment: SharedSegment) -> None:
    segment.tensor[1, 0, 17] = 2.5
    mapping = PageMapping(segment.tensor)
    while mapping.go_on():
        pass
    assert bool((segment.tensor[1, 0, 17] == 2.5).all())
    assert float(segment.tensor.sum()) == 2.5 * PAGE_BYTES / 4


def test_first_pages_of_all_layers_come_before_later_ones() -> None:
    pages = torch.zeros(SHAPE)
    spans: list[tuple[int, int]] = []

    def populate(address: int, num_bytes: int) -> bool:
        spans.append((address - pages.data_ptr(), num_bytes))
        return True

    mapping = PageMapping(pages, populate)
    while mapping.go_on():
        pass
    planes = [plane * 40 for plane in range(4)]
    first_pages = [(plane + first, count) for first, count in ((0, 16), (16, 16), (32, 8)) for plane in planes]
    assert spans == [(page * PAGE_BYTES, count * PAGE_BYTES) for page, count in first_pages]


def test_system_that_cannot_map_ahead_is_asked_once() -> None:
    asked: list[int] = []

    def refuse(address: int, num_bytes: int) -> bool:
        asked.append(num_bytes)
        return False

    mapping = PageMapping(torch.zeros(SHAPE), refuse)
    assert not mapping.go_on()
    assert not mapping.go_on()
    assert len(asked) == 1


def test_segment_is_mapped_at_rest(segment: SharedSegment) -> None:
    idle_work = mapping_of(segment)
    while idle_work():
        pass
    assert mapped_bytes(NAME) == segment.tensor.nbytes


def test_nothing_is_to_be_done_where_pages_are_private() -> None:
    assert not mapping_of(None)()


@pytest.mark.parametrize(("seconds", "num_mapped"), [(0.0, 0), (3.5, 4), (60.0, 10)])
def test_as_much_is_mapped_as_there_is_time_for(seconds: float, num_mapped: int) -> None:
    clock, left = Clock(), iter(range(10))

    def map_one() -> bool:
        clock.now += 1.0
        return next(left, None) is not None

    map_for(seconds, map_one, 1, clock)
    assert next(left, 10) == num_mapped


def test_threads_share_the_work() -> None:
    pages = torch.zeros(SHAPE)
    mapped: list[int] = []

    def populate(address: int, num_bytes: int) -> bool:
        mapped.extend(range(address, address + num_bytes, PAGE_BYTES))
        return True

    map_for(60.0, PageMapping(pages, populate).go_on, 3)
    assert sorted(mapped) == list(range(pages.data_ptr(), pages.data_ptr() + pages.nbytes, PAGE_BYTES))
