"""Ranks, as threads, that come to share a board, or all do without."""

import logging
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import pytest
import torch

from kvasir_kernels.one_shot_all_reduce.reference import NUM_PROGRAMS, PeerMemory
from kvasir_workers.parallel.peer_board import BoardSeat, PeerBoard, open_peer_board
from kvasir_workers.parallel.torch_groups import memory_store

NUM_RANKS = 3


@dataclass
class ScriptedDevice:
    """Fails where it is told to, and knows how far it came."""

    index: int
    fails_at: str = ""
    limit: int = 4096
    done: list[str] = field(default_factory=list)
    handles: list[str] = field(default_factory=list)

    def _do(self, what: str) -> None:
        self.done.append(what)
        if what == self.fails_at:
            raise RuntimeError(f"{what} is broken\nand a long story")

    def share(self) -> str:
        self._do("share")
        return f"handle of {self.index}"

    def open(self, index: int, handles: list[str]) -> PeerBoard:
        self._do("open")
        self.handles = handles
        numbers = torch.zeros(NUM_PROGRAMS, dtype=torch.int64)
        return PeerBoard(PeerMemory(index, numbers[:NUM_RANKS], numbers.view(torch.uint8), numbers), [])

    def check(self, board: PeerBoard) -> None:
        self._do("check")

    def measure_limit(self, board: PeerBoard) -> int:
        self._do("measure")
        return self.limit


def open_boards(devices: list[ScriptedDevice]) -> list[PeerBoard | None]:
    store = memory_store()

    def run(device: ScriptedDevice) -> PeerBoard | None:
        seat = BoardSeat(name="peers-0", index=device.index, num_ranks=len(devices), store=store)
        return open_peer_board(seat, device)

    with ThreadPoolExecutor(len(devices)) as pool:
        return list(pool.map(run, devices))


def devices(**of_rank_1: object) -> list[ScriptedDevice]:
    return [ScriptedDevice(index, **(of_rank_1 if index == 1 else {})) for index in range(NUM_RANKS)]  # type: ignore[arg-type]


def limits(boards: list[PeerBoard | None]) -> list[int | None]:
    return [board.limit_bytes if board is not None else None for board in boards]


def test_each_rank_opens_what_all_share_in_their_order() -> None:
    ranks = devices()
    assert limits(open_boards(ranks)) == [4096] * NUM_RANKS
    assert [rank.handles for rank in ranks] == [[f"handle of {index}" for index in range(NUM_RANKS)]] * NUM_RANKS


@pytest.mark.parametrize(
    ("fails_at", "steps", "lacking"),
    [
        ("share", ["share"], "shared memory"),
        ("open", ["share", "open"], "access to each other's memory"),
        ("check", ["share", "open", "check"], "right sum in time"),
        ("measure", ["share", "open", "check", "measure"], "measured sum"),
    ],
)
def test_what_fails_at_one_rank_ends_it_at_all_and_is_said_once(
    fails_at: str, steps: list[str], lacking: str, caplog: pytest.LogCaptureFixture
) -> None:
    ranks = devices(fails_at=fails_at)
    with caplog.at_level(logging.INFO):
        assert open_boards(ranks) == [None] * NUM_RANKS
    assert [rank.done for rank in ranks] == [steps] * NUM_RANKS
    (said,) = caplog.messages
    assert said == f"all sums of this gang's GPUs are NCCL's: no {lacking} (tensor rank 1: {fails_at} is broken)"


def test_all_have_the_first_ranks_limit_whatever_they_measured() -> None:
    assert limits(open_boards(devices(limit=64))) == [4096] * NUM_RANKS
    assert limits(open_boards(devices(limit=0))) == [4096] * NUM_RANKS


def test_board_that_never_pays_is_not_kept() -> None:
    ranks = devices()
    ranks[0].limit = 0
    assert limits(open_boards(ranks)) == [None] * NUM_RANKS


def test_sums_up_to_the_limit_are_taken() -> None:
    board = open_boards(devices())[0]
    assert board is not None
    assert board.takes(torch.zeros(1024))
    assert not board.takes(torch.zeros(1025))
    assert not board.takes(torch.zeros(8, dtype=torch.int64))
