"""What the log tells of a tree: replaying it gives the tree."""

import random

import pytest

from kvasir_protocol.ids import PageHash, PageIndex
from kvasir_protocol.kv_events import (
    MEDIUM_CPU,
    MEDIUM_GPU,
    MEDIUM_STORAGE,
    AllBlocksCleared,
    BlockHash,
    BlockRemoved,
    BlockStored,
    KvEvent,
    Medium,
)
from kvasir_protocol.page_hash import child_hash, root_hash
from kvasir_workers.kv.event_log import Change, KvEventLog, events_of
from kvasir_workers.kv.manager import Reuse
from kvasir_workers.kv.prefix_tree import CachedPage, token_bytes
from tests.unit.workers.engine_house import PAGE_SIZE, House, greedy
from tests.unit.workers.fake_tiers import FakeTiers
from tests.unit.workers.fakes import make_request
from tests.unit.workers.kv.event_reader import LowerReader, Reader

ROOT = root_hash(2)


def page(index: int, token_ids: list[int], parent: PageHash = ROOT, salt: str | None = None) -> CachedPage:
    return CachedPage(
        page=PageIndex(index),
        name=child_hash(parent, token_ids),
        parent=parent,
        content=token_bytes(token_ids),
        is_full=True,
        salt="" if parent == ROOT and salt is None else salt,
    )


FIRST = page(0, [1, 2])
SECOND = page(1, [3, 4], FIRST.name)
THIRD = page(2, [5, 6], SECOND.name)
OTHER = page(3, [7, 8])


def stored(*pages: CachedPage) -> list[Change]:
    return [Change(item, is_stored=True) for item in pages]


def test_chain_of_pages_is_one_event() -> None:
    assert events_of(stored(FIRST, SECOND, THIRD)) == [
        BlockStored(
            block_hashes=(FIRST.name, SECOND.name, THIRD.name),
            parent_block_hash=None,
            token_ids=(1, 2, 3, 4, 5, 6),
            block_size=2,
        )
    ]


def test_later_pages_name_the_page_before() -> None:
    (event,) = events_of(stored(SECOND))
    assert isinstance(event, BlockStored)
    assert event.parent_block_hash == FIRST.name


def test_what_does_not_follow_is_an_event_of_its_own() -> None:
    removed = [Change(THIRD, is_stored=False), Change(OTHER, is_stored=False)]
    events = events_of([*stored(FIRST, OTHER), *removed, Change(None, is_stored=False), *stored(FIRST)])
    assert [type(event) for event in events] == [BlockStored, BlockStored, BlockRemoved, AllBlocksCleared, BlockStored]
    assert events[2] == BlockRemoved(block_hashes=(THIRD.name, OTHER.name))


def test_each_medium_has_events_of_its_own() -> None:
    changes = [Change(FIRST, is_stored=True), Change(SECOND, is_stored=True, medium=MEDIUM_CPU)]
    changes += [Change(FIRST, is_stored=False), Change(SECOND, is_stored=False, medium=MEDIUM_CPU)]
    media = [event.medium for event in events_of(changes) if isinstance(event, BlockStored | BlockRemoved)]
    assert media == [MEDIUM_GPU, MEDIUM_CPU, MEDIUM_GPU, MEDIUM_CPU]


def test_salt_is_told_for_first_pages() -> None:
    salted = page(0, [1, 2], root_hash(2, "x"), "x")
    (event,) = events_of(stored(salted, page(1, [3, 4], salted.name)))
    assert isinstance(event, BlockStored)
    assert event.extra_keys == (("x",), None)


def test_bell_rings_once_until_somebody_takes() -> None:
    rings: list[int] = []
    log = KvEventLog(bell=lambda: rings.append(1))
    log.page_stored(FIRST, MEDIUM_GPU)
    log.page_stored(SECOND, MEDIUM_GPU)
    log.take()
    log.page_removed(SECOND, MEDIUM_GPU)
    assert len(rings) == 2


def test_full_log_drops_what_comes_and_says_so_once() -> None:
    log = KvEventLog(capacity=2)
    for item in (FIRST, SECOND, THIRD):
        log.page_stored(item, MEDIUM_GPU)
    taken = log.take(with_pages=True)
    assert (taken.changes, taken.is_lossy, taken.pages) == (stored(FIRST, SECOND), True, stored(FIRST, SECOND, THIRD))
    assert not log.take().is_lossy


def ready_pages(below: FakeTiers, medium: Medium) -> dict[tuple[BlockHash, str | None], tuple[int, ...]]:
    """What a tier below holds."""
    assert below.tiers.disk is not None
    slots = below.tiers.host.slots if medium == MEDIUM_CPU else below.tiers.disk.slots
    pages = [stored for stored in slots.pages() if stored.is_ready]
    return {(stored.name, medium): tuple(stored.identity.token_ids) for stored in pages}


@pytest.mark.parametrize("seed", range(8))
def test_replayed_events_give_the_dump_and_the_tree(seed: int) -> None:
    """At any moment: the events so far, the dump, and the full pages of the engine's tree and tiers are the same."""
    draw, log = random.Random(seed), KvEventLog()
    below = FakeTiers(6, PAGE_SIZE, num_disk_slots=6, watcher=log)
    house = House(num_pages=14, reuse=Reuse(min_copied_tokens=1, min_awaited_pages=1), watcher=log, below=below)
    reader, events = Reader(), list[KvEvent]()
    lower = LowerReader()
    for number in range(150):
        prompt = [draw.choice([1, 1, 1, 2]) for _ in range(draw.randint(1, 20))]
        request = make_request(f"r{number}", prompt, sampling=greedy(), salt=draw.choice(["", "x"]))
        house.engine.add(request)
        for _ in range(draw.randint(0, 6)):
            house.step()
        if draw.random() < 0.2:
            house.engine.abort(request.request_id)
        if draw.random() < 0.05:
            house.kv.clear_cache()
        taken = log.take(with_pages=True)
        events = events_of(taken.changes)
        reader.apply(events)
        lower.apply(events)
        below.disk.work(draw.randint(0, 4))
        dump = Reader()
        dump.apply(events_of(taken.pages))
        lower_dump = LowerReader()
        lower_dump.apply(events_of(taken.pages))
        tree = {item.name: tuple(item.token_ids) for item in house.kv.tree.snapshot() if item.is_full}
        assert reader.tokens == dump.tokens == tree
        assert reader.parents == dump.parents
        assert (
            lower.tokens
            == lower_dump.tokens
            == {**ready_pages(below, MEDIUM_CPU), **ready_pages(below, MEDIUM_STORAGE)}
        )
    house.drain()
