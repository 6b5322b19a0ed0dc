"""The decode side's reservations: every turn of the state machine, with a clock turned by hand."""

import errno
import os
import secrets
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import torch

from kvasir_protocol.errors import WireError
from kvasir_protocol.events import HandoverCounters
from kvasir_protocol.ids import Generation, PageIndex, RequestId
from kvasir_protocol.messages import (
    BeginPush,
    CancelPush,
    Commit,
    HandoverFailed,
    Message,
    PageLayout,
    PushGranted,
    PushPages,
    PushRefused,
    Quiet,
)
from kvasir_protocol.wire import encode
from kvasir_workers.held_files import create_held, is_held
from kvasir_workers.kv.page_memory import SHARED_MEMORY
from kvasir_workers.kv.transfer.importer import PageImporter
from kvasir_workers.kv.transfer.page_content import layout_page_bytes, pack_pages
from kvasir_workers.kv.transfer.page_parts import PartedPages
from kvasir_workers.kv.transfer.page_stream import Landing
from kvasir_workers.kv.transfer.pieces import Pieces
from kvasir_workers.kv.transfer.reservation import Peer
from kvasir_workers.kv.transfer.sealing import KEY_BYTES, PageSeal, proof_of, sealed_blocks
from kvasir_workers.sequence import Sequence
from tests.unit.workers.fakes import VOCAB_SIZE, Clock, make_request
from tests.unit.workers.kv.transfer.layouts import make_layout, random_pages

ROUTER, WRITER, STRANGER = b"router", b"writer", b"stranger"
PAGE_ENDPOINT = "tcp://127.0.0.1:5"
STRANGERS_KEY = b"k" * KEY_BYTES
WRITER_PROCESS, WRITER_START = 4711, 99
PATIENCE_S = 5.0


@dataclass
class FakeDesk:
    started: dict[RequestId, tuple[int, ...]] = field(default_factory=dict)
    released: list[RequestId] = field(default_factory=list)

    def start_reserved(self, sequence: Sequence, emitted_token_ids: tuple[int, ...]) -> None:
        self.started[sequence.request_id] = emitted_token_ids

    def release_reserved(self, sequence: Sequence) -> None:
        self.released.append(sequence.request_id)


class Side:
    """An importer with pages 2 and 5 to be filled for each reservation, and a record of what it said and did.

    refused: why connections for contents were closed. has_full_table: no process opens another file.
    """

    def __init__(self, *, is_sealed: bool = True) -> None:
        self.layout = make_layout()
        self.pages = torch.full_like(random_pages(8), torch.nan)
        self.clock, self.desk = Clock(), FakeDesk()
        self.sent: list[tuple[Peer, Message]] = []
        self.living = {WRITER_PROCESS: WRITER_START}
        self.has_full_table = False
        self.refused: list[str] = []
        self.on_send: Callable[[Peer, Message], None] = lambda peer, message: None
        self.importer = PageImporter(
            PartedPages.whole(self.layout, self.pages),
            VOCAB_SIZE,
            self.desk,
            self.send,
            self.clock,
            PAGE_ENDPOINT,
            is_sealed,
            self.process_start,
        )
        self.keys: dict[Generation, bytes] = {}
        self.greeted: set[Generation] = set()
        self.seals: dict[Generation, PageSeal] = {}

    def process_start(self, process_id: int) -> int | None:
        if self.has_full_table:
            raise OSError(errno.ENFILE, "too many open files")
        return self.living.get(process_id)

    def send(self, peer: Peer, message: Message) -> None:
        self.sent.append((peer, message))
        if isinstance(message, PushGranted) and message.page_key:
            self.keys[message.generation] = message.page_key
            if message.is_sealed:
                self.seals[message.generation] = PageSeal(message.page_key)
        self.on_send(peer, message)

    def open(self, name: str = "r", router: Peer = ROUTER) -> Generation:
        sequence = Sequence(make_request(name, range(12), max_tokens=4))
        sequence.pages = [PageIndex(0), PageIndex(2), PageIndex(5)]
        sequence.num_published_pages = 1
        return self.importer.open(sequence, router, PATIENCE_S).generation

    def begin(
        self,
        generation: Generation,
        *,
        writer: Peer = WRITER,
        layout: PageLayout | None = None,
        name: str = "r",
        process_id: int = WRITER_PROCESS,
        shared: bool = False,
        is_sealed: bool = True,
        group: bool = False,
        held_file: str = "",
    ) -> None:
        message = BeginPush(
            request_id=RequestId(name),
            generation=generation,
            layout=layout or self.layout,
            process_id=process_id,
            process_start=WRITER_START,
            uses_shared_memory=shared,
            is_sealed=is_sealed,
            uses_process_group=group,
            held_file=held_file,
        )
        self.importer.begin(writer, message)

    def push(self, generation: Generation, *pages: int, content: bytes | None = None, key: bytes | None = None) -> None:
        """Contents by TCP; key: another than the writer was granted."""
        indices = tuple(PageIndex(page) for page in pages)
        packed = pack_pages(random_pages(8), indices) if content is None else memoryview(content)
        header = encode(PushPages(generation=generation, page_indices=indices))
        seal = PageSeal(key) if key else self.seals.get(generation)
        blocks = [packed] if seal is None else sealed_blocks(seal, header, Pieces([packed]))
        self.bring(generation, header, memoryview(b"".join(map(bytes, blocks))), key)

    def bring(self, generation: Generation, header: bytes, content: memoryview, key: bytes | None = None) -> None:
        """What a connection brings, the first of its generation after the hello."""
        try:
            if generation not in self.greeted or key:
                proof = proof_of(key or self.keys.get(generation, STRANGERS_KEY))
                self.importer.greet(generation, proof)
                self.greeted.add(generation)
            landing = self.importer.land(generation, header, len(content))
            self.write(landing, content)
            self.importer.take(landing)
        except WireError as error:
            self.refused.append(str(error))

    def write(self, landing: Landing, content: memoryview) -> None:
        """As a reader of connections does it."""
        if landing.opening is None:
            Pieces(landing.places).fill(content)
            return
        while num_bytes := landing.opening.num_wanted:
            landing.opening.open(content[:num_bytes])
            content = content[num_bytes:]

    def tell(self, generation: Generation, *pages: int, writer: Peer = WRITER) -> None:
        """The news of pages in shared memory."""
        indices = tuple(PageIndex(page) for page in pages)
        self.importer.take_pages(writer, PushPages(generation=generation, page_indices=indices))

    def commit(self, generation: Generation, *, writer: Peer = WRITER, emitted: tuple[int, ...] = (7,)) -> None:
        message = Commit(generation=generation, emitted_token_ids=emitted)
        self.importer.commit(writer, message)

    def quiet(self, generation: Generation, writer: Peer = WRITER) -> None:
        self.importer.quiet(writer, Quiet(generation=generation, reason="stopped"))

    def pass_time(self, seconds: float) -> None:
        self.clock.now += seconds
        self.importer.tick()

    @property
    def num_quarantined(self) -> int:
        return self.importer.counters(HandoverCounters()).quarantined_pages

    def failures(self) -> list[str]:
        return [message.reason for _, message in self.sent if isinstance(message, HandoverFailed)]

    def kinds(self) -> list[str]:
        return [type(message).__name__ for _, message in self.sent]


@pytest.fixture
def side() -> Side:
    return Side()


def pushing(side: Side, *, shared: bool = False) -> Generation:
    generation = side.open()
    side.begin(generation, shared=shared)
    side.sent.clear()
    return generation


def test_open_reservation_grants_its_writer(side: Side) -> None:
    generation = side.open()
    side.begin(generation)
    ((peer, granted),) = side.sent
    assert isinstance(granted, PushGranted)
    assert (peer, granted.generation, granted.page_endpoint) == (WRITER, generation, PAGE_ENDPOINT)
    assert len(granted.page_key) == KEY_BYTES


def test_each_push_has_a_key_of_its_own(side: Side) -> None:
    side.begin(side.open("a"), name="a")
    side.begin(side.open("b"), name="b")
    assert len(set(side.keys.values())) == 2


def test_writer_in_shared_memory_gets_no_key(side: Side) -> None:
    generation = side.open()
    side.begin(generation, shared=True)
    assert side.sent == [(WRITER, PushGranted(generation=generation))]


def test_pages_and_commit_start_the_sequence(side: Side) -> None:
    generation = pushing(side)
    side.push(generation, 2)
    side.push(generation, 5)
    side.commit(generation, emitted=(3,))
    assert (side.desk.started, side.desk.released, side.sent) == ({"r": (3,)}, [], [])


def test_pushed_content_lies_in_its_pages(side: Side) -> None:
    side.push(pushing(side), 5, 2)
    assert torch.equal(side.pages[:, :, [2, 5]], random_pages(8)[:, :, [2, 5]])


def test_other_pages_are_not_touched(side: Side) -> None:
    side.push(pushing(side), 5, 2)
    assert bool(side.pages[:, :, [0, 1, 3, 4, 6, 7]].isnan().all())


def test_written_straight_only_the_news_comes(side: Side) -> None:
    generation = pushing(side, shared=True)
    side.tell(generation, 2, 5)
    side.commit(generation)
    assert side.desk.started == {"r": (7,)}


def test_commit_that_overtakes_pages_waits_for_them(side: Side) -> None:
    generation = pushing(side)
    side.push(generation, 2)
    side.commit(generation)
    assert side.desk.started == {}
    side.push(generation, 5)
    assert side.desk.started == {"r": (7,)}


def test_commit_whose_pages_never_come_fails_at_the_deadline(side: Side) -> None:
    generation = pushing(side)
    side.push(generation, 2)
    side.commit(generation)
    side.pass_time(PATIENCE_S)
    assert (side.failures(), side.desk.started, side.desk.released) == (["no pages for 5 s"], {}, ["r"])


def test_connection_that_does_not_know_the_key_is_refused_and_the_writer_goes_on(side: Side) -> None:
    generation = pushing(side)
    side.push(generation, 2, 5, key=STRANGERS_KEY)
    assert (bool(side.pages.isnan().all()), side.refused) == (True, ["it was not granted what it asks for"])
    side.push(generation, 2, 5)
    side.commit(generation)
    assert (side.failures(), side.desk.started) == ([], {"r": (7,)})


def test_second_connection_for_a_push_is_refused(side: Side) -> None:
    generation = pushing(side)
    side.push(generation, 2)
    with pytest.raises(WireError, match="nobody awaits"):
        side.importer.greet(generation, proof_of(side.keys[generation]))


@pytest.mark.parametrize("harm", ["sealed for others", "another key", "changed"])
def test_broken_seal_fails_the_hand_over_and_brings_nothing(side: Side, harm: str) -> None:
    generation = pushing(side)
    header, other = (encode(PushPages(generation=generation, page_indices=(PageIndex(page),))) for page in (2, 5))
    seal = PageSeal(STRANGERS_KEY) if harm == "another key" else side.seals[generation]
    sealed = seal.seal(header, pack_pages(random_pages(8), (PageIndex(2),)))
    if harm == "changed":
        sealed[0] ^= 1
    side.bring(generation, other if harm == "sealed for others" else header, sealed)
    assert bool(side.pages.isnan().all())
    assert (side.failures(), side.refused) == (["pages came under a broken seal"], ["a broken seal"])


def test_contents_that_came_already_fail_the_hand_over(side: Side) -> None:
    generation = pushing(side)
    side.push(generation, 2)
    side.push(generation, 2)
    assert len(side.failures()) == 1


@pytest.mark.parametrize(
    "message", [Quiet(generation=Generation(1), reason=""), PushPages(generation=Generation(1), page_indices=())]
)
def test_other_messages_do_not_announce_contents(side: Side, message: Message) -> None:
    generation = pushing(side)
    side.bring(generation, encode(message), memoryview(b""))
    assert side.refused == [f"contents follow a PushPages of their own generation, not {type(message).__name__}"]
    assert side.failures() == []


def test_contents_are_awaited_from_the_grant_until_all_are_there(side: Side) -> None:
    generation = side.open()
    side.begin(generation)
    states = [side.importer.awaits_contents(generation)]
    side.push(generation, 2)
    states.append(side.importer.awaits_contents(generation))
    side.push(generation, 5)
    assert [*states, side.importer.awaits_contents(generation)] == [True, True, False]


def test_contents_of_a_reservation_that_ended_are_not_awaited(side: Side) -> None:
    generation = pushing(side)
    side.push(generation, 2)
    side.importer.abort(RequestId("r"))
    assert not side.importer.awaits_contents(generation)


@pytest.mark.parametrize(("is_sealed", "wants_seal"), [(True, True), (True, False), (False, True)])
def test_contents_are_sealed_if_either_side_wants_it(is_sealed: bool, wants_seal: bool) -> None:
    side = Side(is_sealed=is_sealed)
    generation = side.open()
    side.begin(generation, is_sealed=wants_seal)
    side.push(generation, 5, 2)
    assert (generation in side.seals, side.refused) == (True, [])
    assert torch.equal(side.pages[:, :, [2, 5]], random_pages(8)[:, :, [2, 5]])


def test_contents_in_the_clear_go_straight_to_their_pages() -> None:
    side = Side(is_sealed=False)
    generation = side.open()
    side.begin(generation, is_sealed=False)
    side.push(generation, 5, 2)
    side.commit(generation)
    assert torch.equal(side.pages[:, :, [2, 5]], random_pages(8)[:, :, [2, 5]])
    assert (generation in side.seals, side.refused, side.desk.started) == (False, [], {"r": (7,)})


def test_commit_counts_as_received(side: Side) -> None:
    generation = pushing(side)
    side.push(generation, 2, 5)
    side.commit(generation)
    counters = side.importer.counters(HandoverCounters(pushed_requests=3, pushed_bytes_tcp=9))
    assert (counters.received_requests, counters.failed_requests) == (1, 0)
    assert (counters.pushed_requests, counters.pushed_bytes_tcp) == (3, 9)


@pytest.mark.parametrize(
    "change",
    [
        {"version": 99},
        {"dtype": "bfloat16"},
        {"page_size": 8},
        {"num_layers": 1},
        {"num_kv_heads": 1},
        {"head_dim": 4},
        {"model_fingerprint": "other"},
    ],
    ids=lambda change: next(iter(change)),
)
def test_other_layout_is_refused_with_both_and_the_router_is_told(side: Side, change: dict[str, object]) -> None:
    generation = side.open()
    side.begin(generation, layout=make_layout(**change))  # type: ignore[arg-type]
    assert side.kinds() == ["PushRefused", "HandoverFailed"]
    assert all("pages differ" in message.reason for _, message in side.sent)  # type: ignore[union-attr]
    assert side.desk.released == ["r"]


def test_unknown_reservation_is_refused(side: Side) -> None:
    side.begin(Generation(99))
    assert side.sent == [(WRITER, PushRefused(generation=Generation(99), reason="no such reservation"))]


def test_writer_for_another_request_is_refused_and_the_right_one_goes_on(side: Side) -> None:
    generation = side.open()
    side.begin(generation, name="other")
    assert side.sent == [(WRITER, PushRefused(generation=generation, reason="reserved for another request"))]
    side.begin(generation)
    side.push(generation, 2, 5)
    side.commit(generation)
    assert side.desk.started == {"r": (7,)}


def test_writer_to_shared_memory_that_there_is_not_is_refused_and_the_right_one_goes_on(side: Side) -> None:
    side.importer.is_shared = False
    generation = side.open()
    side.begin(generation, shared=True)
    assert side.sent == [(WRITER, PushRefused(generation=generation, reason="pages are not in shared memory"))]
    side.begin(generation)
    side.push(generation, 2, 5)
    side.commit(generation)
    assert side.desk.started == {"r": (7,)}


def test_second_writer_is_refused_and_the_first_goes_on(side: Side) -> None:
    generation = pushing(side)
    side.begin(generation, writer=STRANGER)
    assert side.kinds() == ["PushRefused"]
    side.push(generation, 2, 5)
    side.commit(generation)
    assert side.desk.started == {"r": (7,)}


# What is not the writer's to say


def test_pages_before_the_grant_are_ignored(side: Side) -> None:
    generation = side.open()
    side.push(generation, 2, 5)
    assert bool(side.pages.isnan().all())


@pytest.mark.parametrize("action", ["push", "commit", "quiet"])
def test_stranger_is_ignored(side: Side, action: str) -> None:
    generation = pushing(side)
    if action == "push":
        side.push(generation, 2, 5, key=STRANGERS_KEY)
    elif action == "commit":
        side.commit(generation, writer=STRANGER)
    else:
        side.quiet(generation, writer=STRANGER)
    assert (side.sent, side.desk.started, side.desk.released) == ([], {}, [])
    assert bool(side.pages.isnan().all())


@pytest.mark.parametrize("action", ["push", "commit", "quiet"])
def test_old_generation_is_ignored(side: Side, action: str) -> None:
    """The request was reserved, aborted and reserved again: the first writer's late messages must do nothing."""
    old = pushing(side)
    side.importer.abort(RequestId("r"))
    new = pushing(side)
    side.desk.released.clear()
    {"push": lambda: side.push(old, 2, 5), "commit": lambda: side.commit(old), "quiet": lambda: side.quiet(old)}[
        action
    ]()
    assert old != new
    assert (side.sent, side.desk.started, side.desk.released) == ([], {}, [])


@pytest.mark.parametrize(
    ("pages", "content"),
    [
        ((0,), None),
        ((2, 3), None),
        ((2,), b""),
        ((2,), b"x"),
        ((2,), bytes(layout_page_bytes(make_layout()) + 1)),
        ((), b""),
    ],
    ids=["not-missing", "not-ours", "empty", "short", "long", "no-pages"],
)
def test_pages_not_asked_for_or_of_another_size_fail_the_hand_over(
    side: Side, pages: tuple[int, ...], content: bytes | None
) -> None:
    side.push(pushing(side), *pages, content=content)
    assert side.failures() == ["the writer sent pages that were not asked for, or of another size"]
    assert side.desk.released == ["r"]
    assert bool(side.pages.isnan().all())


def test_content_beside_shared_memory_is_dropped(side: Side) -> None:
    side.push(pushing(side, shared=True), 2)
    assert (bool(side.pages.isnan().all()), side.failures()) == (True, [])


def test_stranger_tells_nothing_of_shared_memory(side: Side) -> None:
    generation = pushing(side, shared=True)
    side.tell(generation, 2, 5, writer=STRANGER)
    side.commit(generation)
    assert side.failures() == ["committed with 2 pages missing"]


def test_news_of_pages_that_were_to_be_sent_fails_the_hand_over(side: Side) -> None:
    side.tell(pushing(side), 2)
    assert len(side.failures()) == 1


def test_commit_with_missing_pages_in_shared_memory_fails_the_hand_over(side: Side) -> None:
    generation = pushing(side, shared=True)
    side.tell(generation, 2)
    side.commit(generation)
    assert (side.failures(), side.desk.started) == (["committed with 1 pages missing"], {})


@pytest.mark.parametrize(
    "emitted", [(), (VOCAB_SIZE,), (-1,), (1, 1, 1, 1)], ids=["none", "unknown", "negative", "too-many"]
)
def test_commit_after_which_nothing_can_follow_fails_the_hand_over(side: Side, emitted: tuple[int, ...]) -> None:
    generation = pushing(side)
    side.push(generation, 2, 5)
    side.commit(generation, emitted=emitted)
    assert side.failures() == ["the writer emitted tokens after which the sequence can't go on"]
    assert (side.desk.started, side.desk.released) == ({}, ["r"])


# Deadlines


def test_reservation_that_nobody_fills_fails_at_its_deadline(side: Side) -> None:
    generation = side.open()
    side.pass_time(PATIENCE_S - 0.1)
    assert side.sent == []
    side.pass_time(0.1)
    failed = HandoverFailed(request_id=RequestId("r"), generation=generation, reason="no pages for 5 s")
    assert (side.sent, side.desk.released) == ([(ROUTER, failed)], ["r"])


def test_each_sign_of_progress_moves_the_deadline(side: Side) -> None:
    generation = side.open()
    side.pass_time(4)
    side.begin(generation)
    side.pass_time(4)
    side.push(generation, 2)
    side.pass_time(4)
    assert side.failures() == []
    side.pass_time(1)
    assert side.failures() == ["no pages for 5 s"]


def test_failed_hand_over_is_told_once(side: Side) -> None:
    side.open()
    side.pass_time(6)
    side.pass_time(6)
    assert len(side.failures()) == 1


def test_router_found_gone_at_a_deadline_takes_its_other_reservations_with_it(side: Side) -> None:
    """What the server does when a router can't be reached: it aborts all that the router asked for."""
    side.open("a")
    side.open("b")
    side.on_send = lambda peer, message: side.importer.abort(RequestId("b")) and None
    side.pass_time(6)
    assert sorted(side.desk.released) == ["a", "b"]


# Aborts and quarantine


@pytest.mark.parametrize("begun", [False, True], ids=["open", "pushing"])
def test_aborted_reservation_over_tcp_is_freed_at_once(side: Side, begun: bool) -> None:
    if begun:
        pushing(side)
    else:
        side.open()
    assert side.importer.abort(RequestId("r"))
    assert (side.desk.released, side.kinds()) == (["r"], [])


def test_unknown_request_is_not_aborted(side: Side) -> None:
    assert not side.importer.abort(RequestId("other"))


def quarantined(side: Side, process_id: int = WRITER_PROCESS, held_file: str = "") -> Generation:
    generation = side.open()
    side.begin(generation, shared=True, process_id=process_id, held_file=held_file)
    side.sent.clear()
    side.importer.abort(RequestId("r"))
    return generation


def test_aborted_writer_in_shared_memory_is_told_and_its_pages_quarantined(side: Side) -> None:
    generation = quarantined(side)
    assert side.sent == [(WRITER, CancelPush(generation=generation))]
    assert (side.desk.released, side.num_quarantined) == ([], 3)


def test_deadline_in_shared_memory_quarantines_and_tells_the_router(side: Side) -> None:
    pushing(side, shared=True)
    side.pass_time(6)
    assert side.kinds() == ["CancelPush", "HandoverFailed"]
    assert (side.desk.released, side.num_quarantined) == ([], 3)


def test_quarantine_ends_with_the_writers_word(side: Side) -> None:
    generation = quarantined(side)
    side.quiet(generation)
    assert (side.desk.released, side.num_quarantined) == (["r"], 0)


def test_quarantine_ends_with_the_writers_death(side: Side) -> None:
    quarantined(side)
    side.living.clear()
    side.pass_time(0.1)
    assert (side.desk.released, side.num_quarantined) == (["r"], 0)


def held_path() -> Path:
    return SHARED_MEMORY / f"kvasir-test-{secrets.token_hex(4)}"


def test_quarantine_ends_with_the_death_of_a_writer_that_is_seen_only_by_what_it_holds(side: Side) -> None:
    path = held_path()
    writers, ours = create_held(path), os.open(path, os.O_RDWR)
    quarantined(side, process_id=999, held_file=path.name)
    path.unlink()
    side.pass_time(0.1)
    assert side.num_quarantined == 3
    os.close(writers)
    side.pass_time(0.1)
    assert (side.desk.released, side.num_quarantined) == (["r"], 0)
    assert not is_held(ours)  # the importer took it over, and let go of it
    os.close(ours)


def test_writer_that_ended_before_its_question_was_read_is_granted_nothing(side: Side) -> None:
    """It could never say that the pages are quiet."""
    path, generation = held_path(), side.open()
    os.close(create_held(path))
    side.begin(generation, shared=True, process_id=999, held_file=path.name)
    path.unlink()
    assert side.kinds() == ["PushRefused", "HandoverFailed"]
    assert (side.desk.released, side.num_quarantined) == (["r"], 0)


def test_quarantine_ends_with_the_writers_death_also_if_its_number_was_given_to_another(side: Side) -> None:
    quarantined(side)
    side.living[WRITER_PROCESS] = WRITER_START + 1
    side.pass_time(0.1)
    assert (side.desk.released, side.num_quarantined) == (["r"], 0)


def test_process_here_that_only_has_the_writers_number_proves_nothing(side: Side) -> None:
    side.living[WRITER_PROCESS] = WRITER_START + 1
    quarantined(side)
    side.living.clear()
    side.pass_time(1e6)
    assert side.num_quarantined == 3


def test_writer_of_which_nothing_can_be_found_out_is_not_dead(side: Side) -> None:
    """As when this process may open no more files."""
    quarantined(side)
    side.has_full_table = True
    side.pass_time(0.1)
    assert (side.desk.released, side.num_quarantined) == ([], 3)
    side.has_full_table = False
    side.living.clear()
    side.pass_time(0.1)
    assert (side.desk.released, side.num_quarantined) == (["r"], 0)


def test_writer_that_could_not_be_seen_when_it_began_is_not_dead_when_it_still_can_not(side: Side) -> None:
    side.has_full_table = True
    quarantined(side)
    side.has_full_table = False
    side.living.clear()
    side.pass_time(1e6)
    assert side.num_quarantined == 3


def test_quarantine_does_not_end_with_time(side: Side) -> None:
    quarantined(side)
    side.pass_time(1e6)
    assert (side.desk.released, side.num_quarantined) == ([], 3)


def test_writer_is_asked_again_until_it_is_quiet(side: Side) -> None:
    """The first question may have met a broken connection."""
    generation = quarantined(side)
    side.sent.clear()
    side.pass_time(PATIENCE_S)
    side.pass_time(0.1)
    assert side.sent == [(WRITER, CancelPush(generation=generation))]
    side.quiet(generation)
    side.pass_time(PATIENCE_S)
    assert len(side.sent) == 1


def test_quarantine_does_not_end_with_a_strangers_word(side: Side) -> None:
    generation = quarantined(side)
    side.quiet(generation, writer=STRANGER)
    assert side.num_quarantined == 3


def test_writer_that_cannot_be_seen_is_believed_only_by_its_word(side: Side) -> None:
    """In another process namespace no process has its id: that it can't be found proves nothing."""
    generation = quarantined(side, process_id=999)
    side.pass_time(1e6)
    assert side.num_quarantined == 3
    side.quiet(generation)
    assert side.num_quarantined == 0


@pytest.mark.parametrize("action", ["push", "commit", "begin"])
def test_quarantined_reservation_takes_nothing_any_more(side: Side, action: str) -> None:
    generation = quarantined(side)
    side.sent.clear()
    if action == "push":
        side.push(generation, 2, 5, content=b"")
    elif action == "commit":
        side.commit(generation)
    else:
        side.begin(generation)
    assert side.kinds() == (["PushRefused"] if action == "begin" else [])
    assert (side.desk.started, side.num_quarantined) == ({}, 3)


def test_request_may_be_reserved_again_while_its_old_pages_are_quarantined(side: Side) -> None:
    old = quarantined(side)
    new = side.open()
    side.quiet(old)
    side.begin(new)
    side.push(new, 2, 5)
    side.commit(new)
    assert side.desk.started == {"r": (7,)}


def test_quarantined_request_is_not_aborted_twice(side: Side) -> None:
    quarantined(side)
    assert not side.importer.abort(RequestId("r"))


@pytest.mark.parametrize("shared", [False, True])
def test_writer_that_gives_up_fails_the_hand_over_and_frees_the_pages(side: Side, shared: bool) -> None:
    generation = pushing(side, shared=shared)
    side.quiet(generation)
    assert (side.failures(), side.desk.released, side.num_quarantined) == (["stopped"], ["r"], 0)


def test_bad_pages_over_shared_memory_are_quarantined(side: Side) -> None:
    generation = pushing(side, shared=True)
    side.tell(generation, 0)
    assert (side.kinds(), side.num_quarantined) == (["CancelPush", "HandoverFailed"], 3)
    side.quiet(generation)
    assert side.num_quarantined == 0


def test_failures_are_counted_and_aborts_are_not(side: Side) -> None:
    side.push(pushing(side), 0, content=b"")
    side.quiet(pushing(side))
    pushing(side)
    side.importer.abort(RequestId("r"))
    assert side.importer.counters(HandoverCounters()).failed_requests == 2


def test_late_word_for_a_former_replica_finds_nothing() -> None:
    """It listened where this one does, and counted its reservations as well."""
    former, side = Side(), Side()
    side.open()
    side.begin(former.open())
    assert side.kinds() == ["PushRefused"]


# Through a process group


def in_group(side: Side) -> Generation:
    side.importer.meet = lambda writer, patience_s: f"{writer.decode()} within {patience_s:g} s"
    generation = side.open()
    side.begin(generation, group=True)
    return generation


def receive(side: Side, generation: Generation, *pages: int, content: bytes | None = None) -> None:
    indices = tuple(PageIndex(page) for page in pages)
    packed = pack_pages(random_pages(8), indices) if content is None else memoryview(content)
    side.importer.take_received(WRITER, PushPages(generation=generation, page_indices=indices), packed)


def test_writer_is_told_where_its_group_meets(side: Side) -> None:
    generation = in_group(side)
    assert side.sent == [(WRITER, PushGranted(generation=generation, meeting="writer within 5 s"))]


def test_what_came_through_a_group_lies_in_its_pages(side: Side) -> None:
    generation = in_group(side)
    receive(side, generation, 5, 2)
    side.commit(generation)
    assert torch.equal(side.pages[:, :, [2, 5]], random_pages(8)[:, :, [2, 5]])
    assert side.desk.started == {"r": (7,)}


@pytest.mark.parametrize(("pages", "content"), [((0,), None), ((2,), b"x"), ((), b"")])
def test_what_was_not_asked_for_fails_the_hand_over(side: Side, pages: tuple[int, ...], content: bytes | None) -> None:
    receive(side, in_group(side), *pages, content=content)
    assert (len(side.failures()), side.desk.released) == (1, ["r"])
    assert bool(side.pages.isnan().all())


def test_what_comes_for_an_ended_reservation_is_dropped(side: Side) -> None:
    generation = in_group(side)
    side.importer.abort(RequestId("r"))
    receive(side, generation, 5, 2)
    assert (side.desk.released, bool(side.pages.isnan().all())) == (["r"], True)


def test_broken_group_fails_what_was_to_come_through_it_and_nothing_else(side: Side) -> None:
    in_group(side)
    other = side.open("other")
    side.begin(other, name="other")
    side.importer.lose_group(STRANGER, "gone")
    assert side.failures() == []
    side.importer.lose_group(WRITER, "gone")
    assert (side.failures(), side.desk.released) == (["the process group is broken: gone"], ["r"])
    side.push(other, 2, 5)
    side.commit(other)
    assert side.desk.started == {"other": (7,)}


def test_pages_that_were_to_come_through_a_group_that_is_gone_fail_with_this_reason(side: Side) -> None:
    indices = (PageIndex(2), PageIndex(5))
    side.importer.take_pages(WRITER, PushPages(generation=in_group(side), page_indices=indices))
    assert side.failures() == ["the process group that its pages were to come through is gone"]


def test_group_that_can_not_be_had_fails_the_hand_over(side: Side) -> None:
    def refuse(writer: Peer, patience_s: float) -> str:
        raise OSError("no address")

    side.importer.meet = refuse
    side.begin(side.open(), group=True)
    assert (side.failures(), side.desk.released) == (["no process group can be had: no address"], ["r"])
