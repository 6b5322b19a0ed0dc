"""An engine whose evicted pages go to host memory and to disk: the same tokens, less to compute."""

import random

import pytest

from kvasir_protocol.request import GenerationRequest
from kvasir_workers.kv.manager import Reuse
from tests.unit.workers.engine_house import PAGE_SIZE, House, greedy
from tests.unit.workers.fake_tiers import FakeTiers
from tests.unit.workers.fakes import expected_answer, make_request

PROMPT = [1, 2, 3, 4] * 4 + [5]
OTHER = [9, 8, 7, 6] * 5
NUM_PROMPT_PAGES = 4


def ask(name: str, prompt: list[int] = PROMPT, **changes: object) -> GenerationRequest:
    return make_request(name, prompt, sampling=greedy(max_tokens=3), **changes)  # type: ignore[arg-type]


def house_of(
    num_host_slots: int = 20, num_disk_slots: int = 0, *, num_pages: int = 6, is_cheap: bool = True, **settings: object
) -> tuple[House, FakeTiers]:
    """Pages for one request at a time: the next one evicts those of the one before."""
    below = FakeTiers(num_host_slots, PAGE_SIZE, num_disk_slots=num_disk_slots, is_cheap=is_cheap)
    house = House(num_pages=num_pages, below=below, reuse=Reuse(min_copied_tokens=PAGE_SIZE), **settings)  # type: ignore[arg-type]
    return house, below


def cached_tokens(house: House, name: str) -> int:
    return house.outputs[name][0].num_cached_tokens


def check(house: House, *requests: GenerationRequest) -> None:
    for request in requests:
        assert house.tokens(request.request_id) == expected_answer(request)[0]


def test_evicted_prefix_comes_back_from_host_memory() -> None:
    house, _ = house_of()
    requests = [ask("first"), ask("other", OTHER), ask("again")]
    for request in requests:
        house.answer(request)
    check(house, *requests)
    assert cached_tokens(house, "again") == NUM_PROMPT_PAGES * PAGE_SIZE
    assert house.engine.counters().host_restored_pages == NUM_PROMPT_PAGES


def test_restored_prefix_is_computed_again_if_that_is_cheaper() -> None:
    house, _ = house_of(is_cheap=False)
    requests = [ask("first"), ask("other", OTHER), ask("again")]
    for request in requests:
        house.answer(request)
    check(house, *requests)
    assert (cached_tokens(house, "again"), house.engine.counters().host_restored_pages) == (0, 0)


def test_another_tenants_pages_are_not_restored() -> None:
    house, _ = house_of()
    for request in (ask("first", salt="a"), ask("other", OTHER, salt="a"), ask("again", salt="b")):
        house.answer(request)
    assert cached_tokens(house, "again") == 0


def test_restored_pages_are_in_the_tree_and_can_be_shared() -> None:
    house, _ = house_of(num_pages=14)
    for number in range(4):
        house.answer(ask(f"other{number}", [number, *OTHER]))
    house.answer(ask("first"))
    for number in range(4, 8):
        house.answer(ask(f"other{number}", [number, *OTHER]))
    house.engine.add(ask("left"))
    house.step()
    house.engine.add(ask("right"))
    house.drain()
    assert [cached_tokens(house, name) for name in ("left", "right")] == [NUM_PROMPT_PAGES * PAGE_SIZE] * 2
    assert house.engine.counters().host_restored_pages == NUM_PROMPT_PAGES


def test_second_newcomer_waits_a_step_instead_of_restoring_too() -> None:
    house, _ = house_of(num_pages=14)
    prompt = PROMPT[: PAGE_SIZE + 1]  # fewer pages than one waits for if they are computed
    house.answer(ask("first", prompt))
    for number in range(4):
        house.answer(ask(f"other{number}", [number, *OTHER]))
    for name in ("left", "right"):
        house.engine.add(ask(name, prompt))
    house.step()
    assert house.engine.num_running == 1
    house.drain()
    assert [cached_tokens(house, name) for name in ("left", "right")] == [PAGE_SIZE] * 2
    assert house.engine.counters().host_restored_pages == 1


def test_preempted_sequence_comes_back_from_host_memory() -> None:
    house, _ = house_of(num_pages=10, max_num_seqs=2)
    requests = [
        make_request("a", PROMPT[:9], sampling=greedy(max_tokens=20)),
        make_request("b", OTHER[:9], sampling=greedy(max_tokens=20)),
    ]
    for request in requests:
        house.engine.add(request)
    house.drain()
    check(house, *requests)
    counters = house.engine.counters()
    assert counters.num_preemptions > 0
    assert counters.host_restored_pages > 0


def test_sequence_that_is_aborted_after_its_pages_were_restored_leaves_nothing_behind() -> None:
    house, below = house_of()
    house.answer(ask("first"))
    house.answer(ask("other", OTHER))
    house.engine.add(ask("again"))
    house.step()
    assert house.engine.abort(ask("again").request_id)
    house.engine.audit()
    below.tiers.audit()
    assert house.engine.num_used_pages == 0


def test_reserved_pages_are_neither_saved_nor_restored() -> None:
    house, below = house_of()
    house.answer(ask("first"))
    sequence = house.reserve(ask("other", OTHER))
    house.fill(sequence)
    assert len(below.tiers.host.slots) == 0
    house.engine.start_reserved(sequence, (expected_answer(ask("other", OTHER))[0][0],))
    house.drain()
    check_rest = expected_answer(ask("other", OTHER))[0][1:]
    assert house.tokens("other") == check_rest
    again = house.reserve(ask("again"))
    assert (again.num_computed, again.restored_from) == (0, [])
    house.engine.release_reserved(again)
    house.engine.audit()


def test_pages_that_leave_for_another_replica_may_have_been_restored() -> None:
    house, _ = house_of()
    house.answer(ask("first"))
    house.answer(ask("other", OTHER))
    house.engine.add(ask("again"), is_prefill_only=True)
    house.drain()
    pages = [page for item in house.exporter.exported for page in item.pages]
    assert house.runner.read(pages, len(PROMPT)) == PROMPT
    assert house.engine.counters().host_restored_pages == NUM_PROMPT_PAGES
    house.engine.release_exported(pages)


def test_cleared_cache_is_empty_below_too() -> None:
    house, below = house_of(num_disk_slots=20)
    house.answer(ask("first"))
    house.answer(ask("other", OTHER))
    house.kv.clear_cache()
    assert len(below.tiers.host.slots) == 0
    house.answer(ask("again"))
    assert cached_tokens(house, "again") == 0


# Disk


def house_with_pages_on_disk() -> tuple[House, FakeTiers]:
    """The prompt's pages are on disk, and not in host memory any more."""
    house, below = house_of(num_host_slots=16, num_disk_slots=40)
    for request in (ask("first"), *(ask(f"other{number}", [number, *OTHER]) for number in range(6))):
        house.engine.add(request)
        while house.engine.has_work:
            house.step()
            below.disk.work()
    return house, below


def test_prefix_comes_back_from_disk() -> None:
    house, below = house_with_pages_on_disk()
    house.engine.add(ask("again"))
    house.step()
    assert (house.engine.num_running, house.engine.num_waiting) == (0, 1)
    below.disk.work()
    house.drain()
    check(house, ask("again"))
    assert cached_tokens(house, "again") == NUM_PROMPT_PAGES * PAGE_SIZE
    assert house.engine.counters().disk_restored_pages == NUM_PROMPT_PAGES


def test_who_waits_for_the_disk_holds_nobody_up() -> None:
    house, below = house_with_pages_on_disk()
    house.engine.add(ask("again"))
    house.engine.add(ask("short", [3]))
    house.step()
    assert house.tokens("short") == expected_answer(ask("short", [3]))[0][:1]
    below.disk.work()
    house.drain()
    check(house, ask("again"), ask("short", [3]))


def test_disk_that_never_answers_is_waited_for_only_so_long() -> None:
    house, _ = house_with_pages_on_disk()
    house.engine.add(ask("again"))
    house.drain(max_steps=50)
    check(house, ask("again"))
    assert cached_tokens(house, "again") == 0


def test_spoilt_pages_are_computed_again() -> None:
    house, below = house_with_pages_on_disk()
    below.disk.spoil()
    house.engine.add(ask("again"))
    house.step()
    below.disk.work()
    house.drain()
    check(house, ask("again"))
    assert (cached_tokens(house, "again"), house.engine.counters().disk_corrupt_pages) == (0, NUM_PROMPT_PAGES)


def test_aborted_while_it_waits_for_the_disk() -> None:
    house, below = house_with_pages_on_disk()
    house.engine.add(ask("again"))
    house.step()
    assert house.engine.abort(ask("again").request_id)
    below.disk.work()
    house.answer(ask("later", [3]))
    house.engine.audit()
    assert below.tiers.host.arriving == set()


# All at once


@pytest.mark.parametrize("overlap", [False, True])
@pytest.mark.parametrize("seed", range(10))
def test_prompts_that_return_get_their_tokens_whatever_the_tiers_do(seed: int, overlap: bool) -> None:
    draw = random.Random(seed)
    below = FakeTiers(draw.choice([4, 10, 20]), PAGE_SIZE, num_disk_slots=draw.choice([5, 60]))
    house = House(num_pages=14, below=below, max_num_seqs=3, overlap=overlap, is_prompt=draw.random() < 0.5)
    texts = [[number, *draw.choices(range(1, 9), k=draw.randint(10, 30))] for number in range(6)]
    requests: list[GenerationRequest] = []
    aborted = set()
    for number in range(120):
        text = draw.choice(texts)
        request = ask(f"r{number}", [*text[: draw.randint(8, len(text))], *draw.choices(range(9), k=2)])
        house.engine.add(request)
        requests.append(request)
        for _ in range(draw.randint(0, 8)):
            house.step()
            below.disk.work(draw.randint(0, 3))
        if draw.random() < 0.1 and house.engine.abort(request.request_id):
            aborted.add(request.request_id)
        if draw.random() < 0.03:
            house.kv.clear_cache()
        if draw.random() < 0.03:
            below.disk.spoil()
    house.drain()
    check(house, *(request for request in requests if request.request_id not in aborted))
    counters = house.engine.counters()
    assert min(counters.host_saved_pages, counters.host_restored_pages, counters.disk_saved_pages) > 0
    assert house.engine.num_used_pages == 0


def test_reservation_takes_nothing_from_host_memory() -> None:
    """What it evicts can't be saved, since it is overwritten before a step could: so nothing makes room for it."""
    below = FakeTiers(6, 4)
    house = House(num_pages=12, below=below, budget=64)
    for i in range(4):
        house.answer(make_request(f"p{i}", [i + 1] * 33, sampling=greedy(max_tokens=1)))
    before, num_held = house.engine.counters(), len(below.tiers.host.slots)
    assert num_held > 0
    sequence = house.reserve(make_request("r", [9] * 40))
    after = house.engine.counters()
    assert len(below.tiers.host.slots) == num_held
    assert (after.host_saved_pages, after.host_dropped_pages) == (before.host_saved_pages, before.host_dropped_pages)
    house.engine.release_reserved(sequence)
