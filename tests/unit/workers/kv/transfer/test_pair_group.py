"""Two ends of a process group over gloo, and what each hears when the other fails."""

import queue
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import pytest
import torch

from kvasir_protocol.ids import Generation
from kvasir_protocol.messages import MAX_DEADLINE_S
from kvasir_workers.kv.transfer.group_line import MOST_FAILURES, GroupLine, PairGroups
from kvasir_workers.kv.transfer.pair_group import DECODE_SIDE, IDLE_S, WRITER, PairGroup, PairMeeting, PairSeat
from kvasir_workers.parallel.torch_groups import Store, host_store

HOST = "127.0.0.1"
DEADLINE_S = 10.0
GENERATION = Generation(7)
CONTENT = memoryview(bytearray(range(200)))

ENDS_WHILE_IT_WAITS = """
import torch
from kvasir_workers.kv.transfer.pair_group import DECODE_SIDE, PairGroup, PairMeeting, PairSeat
from kvasir_workers.parallel.torch_groups import host_store

store, port = host_store("127.0.0.1")
seat = PairSeat(
    rank=DECODE_SIDE, host="127.0.0.1", deadline_s=0.5, device=torch.device("cpu"), post=lambda work: work()
)
PairGroup(PairMeeting(host="127.0.0.1", port=port, name="pair"), seat, print)
"""


class Owner:
    """A thread that the test plays: it does what was posted when it is asked to."""

    def __init__(self) -> None:
        self.posted: queue.Queue[Callable[[], None]] = queue.Queue()
        self.broken: list[str] = []

    def do_next(self) -> None:
        self.posted.get(timeout=2 * DEADLINE_S)()


@dataclass
class Meeting:
    """A store that listens, and the ends that were opened there."""

    store: tuple[Store, int] = field(default_factory=lambda: host_store(HOST))
    groups: list[PairGroup] = field(default_factory=list)

    @property
    def place(self) -> PairMeeting:
        return PairMeeting(host=HOST, port=self.store[1], name="pair")

    def join(self, rank: int, owner: Owner, deadline_s: float = DEADLINE_S, idle_s: float | None = None) -> PairGroup:
        seat = PairSeat(
            rank=rank,
            host=HOST,
            deadline_s=deadline_s,
            device=torch.device("cpu"),
            post=owner.posted.put,
            idle_s=idle_s,
        )
        self.groups.append(PairGroup(self.place, seat, owner.broken.append))
        return self.groups[-1]

    def close(self) -> None:
        for group in self.groups:
            group.close()


@pytest.fixture
def meeting() -> Iterator[Meeting]:
    meeting = Meeting()
    yield meeting
    meeting.close()


def test_place_to_meet_survives_being_told() -> None:
    place = PairMeeting(host="::1", port=5, name="pair")
    assert PairMeeting.from_text(place.to_text()) == place


@pytest.mark.parametrize("text", ["", "nowhere", "a|b|c", "a|1|b|c", "a|0|c", "a|65536|c"])
def test_other_text_is_no_place_to_meet(text: str) -> None:
    with pytest.raises(ValueError):
        PairMeeting.from_text(text)


def test_contents_arrive_in_order(meeting: Meeting) -> None:
    ours, theirs, received = Owner(), Owner(), list[bytes]()
    reader, writer = meeting.join(DECODE_SIDE, ours), meeting.join(WRITER, theirs)
    for content in (CONTENT, CONTENT[50:]):
        writer.send(GENERATION, content, lambda: None)
        reader.receive(GENERATION, len(CONTENT), lambda found: received.append(bytes(found)))
    for _ in range(2):
        ours.do_next()
    assert received == [bytes(CONTENT), bytes(CONTENT[50:])]
    assert (ours.broken, theirs.broken) == ([], [])


@pytest.mark.parametrize(("generation", "most_bytes"), [(8, 200), (7, 199)])
def test_contents_other_than_announced_break_the_group(meeting: Meeting, generation: int, most_bytes: int) -> None:
    ours, theirs, received = Owner(), Owner(), list[bytes]()
    reader, writer = meeting.join(DECODE_SIDE, ours), meeting.join(WRITER, theirs)
    writer.send(GENERATION, CONTENT, lambda: None)
    reader.receive(Generation(generation), most_bytes, lambda found: received.append(bytes(found)))
    ours.do_next()
    assert received == []
    assert "200 bytes of hand-over 7 came" in ours.broken[0]


def test_who_waits_in_vain_for_the_other_is_told_by_its_deadline(meeting: Meeting) -> None:
    ours = Owner()
    meeting.join(WRITER, ours, deadline_s=0.3)
    ours.do_next()
    assert len(ours.broken) == 1


def test_process_that_ends_while_its_group_waits_ends_in_order() -> None:
    run = subprocess.run([sys.executable, "-c", ENDS_WHILE_IT_WAITS], capture_output=True, text=True, timeout=60)
    assert run.returncode == 0, run.stderr
    assert "wait timeout" in run.stdout


def test_contents_that_never_come_break_the_group_at_the_deadline(meeting: Meeting) -> None:
    ours, theirs = Owner(), Owner()
    reader, writer = meeting.join(DECODE_SIDE, ours, deadline_s=0.5), meeting.join(WRITER, theirs, deadline_s=0.5)
    reader.receive(GENERATION, 200, lambda found: None)
    ours.do_next()
    assert len(ours.broken) == 1
    writer.close()


@pytest.mark.parametrize("rank", [DECODE_SIDE, WRITER])
def test_end_that_nobody_uses_leaves_its_group_and_tells_why(meeting: Meeting, rank: int) -> None:
    ours, theirs = Owner(), Owner()
    meeting.join(rank, ours, idle_s=0.0)
    meeting.join(1 - rank, theirs)
    ours.do_next()
    assert (ours.broken, theirs.broken) == (["nobody has used it for 0 s"], [])


def test_decode_side_outwaits_its_reservations_and_the_writer_the_decode_side() -> None:
    assert MAX_DEADLINE_S < IDLE_S[DECODE_SIDE] < IDLE_S[WRITER] - MAX_DEADLINE_S


def test_lines_of_one_place_share_a_group_and_hear_when_it_breaks(meeting: Meeting) -> None:
    theirs, woken = Owner(), list[str]()
    reader = meeting.join(DECODE_SIDE, Owner())
    groups = PairGroups(HOST, torch.device("cpu"), theirs.posted.put, lambda: woken.append("lost"))
    lines: list[GroupLine] = [
        groups.line(meeting.place.to_text(), Generation(number), DEADLINE_S, lambda: woken.append("idle"))
        for number in range(2)
    ]
    lines[1].put(CONTENT)
    reader.receive(Generation(1), 200, lambda found: None)
    assert not lines[1].is_idle
    theirs.do_next()
    assert (lines[1].is_idle, lines[1].flush(), lines[1].flush(), woken) == (True, True, False, ["idle"])
    reader.close()
    lines[0].put(memoryview(bytearray(2**26)))  # more than the system keeps for whom nobody reads
    while "lost" not in woken:
        theirs.do_next()
    for line in lines:
        with pytest.raises(OSError):
            line.flush()
    with pytest.raises(ConnectionError):
        groups.line(meeting.place.to_text(), Generation(2), DEADLINE_S, lambda: None)


def test_groups_that_broke_are_forgotten_and_a_few_of_their_failures_kept() -> None:
    theirs = Owner()
    groups = PairGroups(HOST, torch.device("cpu"), theirs.posted.put, lambda: None)
    for number in range(MOST_FAILURES + 1):
        groups.lose(f"place {number}", "gone")
    with pytest.raises(ConnectionError, match="gone"):
        groups.line("place 1", GENERATION, 1.0, lambda: None)
    with pytest.raises(ValueError):
        groups.line("place 0", GENERATION, 1.0, lambda: None)
