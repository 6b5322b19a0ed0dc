"""Ranks of one host, as threads or processes, that speak through shared memory."""

import multiprocessing
import os
import signal
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

import pytest
import torch

from kvasir_workers.kv.page_memory import SHARED_MEMORY, SUFFIX, SharedSegment, remove_abandoned_segments
from kvasir_workers.parallel.futex import has_futex
from kvasir_workers.parallel.shared_board import BUFFER_BYTES, RANK_BYTES, SharedBoard, open_board
from kvasir_workers.parallel.torch_groups import Store, memory_store

pytestmark = pytest.mark.skipif(not has_futex(), reason="needs Linux on x86-64")

T = TypeVar("T")
DEADLINE_S = 20.0
NUM_ROUNDS = 200


def on_all_ranks(num_ranks: int, act: Callable[[SharedBoard, int], T], deadline_s: float = DEADLINE_S) -> list[T]:
    """What each rank returns."""
    store = memory_store()

    def run(rank: int) -> T:
        board = open_board("board", rank, num_ranks, store, deadline_s)
        assert board is not None
        return act(board, rank)

    with ThreadPoolExecutor(num_ranks) as pool:
        return list(pool.map(run, range(num_ranks)))


def numbers(rank: int) -> torch.Tensor:
    return torch.randn(7, 5, generator=torch.Generator().manual_seed(rank))


@pytest.mark.parametrize("num_ranks", [2, 3, 4])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_sums_have_the_same_bits_at_all_ranks(num_ranks: int, dtype: torch.dtype) -> None:
    def act(board: SharedBoard, rank: int) -> torch.Tensor:
        tensor = numbers(rank).to(dtype)
        board.add_up(tensor)
        return tensor

    first, *others = on_all_ranks(num_ranks, act)
    expected = numbers(0).to(dtype)
    for rank in range(1, num_ranks):
        expected += numbers(rank).to(dtype)
    assert torch.equal(first, expected)
    assert all(torch.equal(first, other) for other in others)


def test_operations_of_all_kinds_follow_each_other() -> None:
    """However far one rank is ahead, it overwrites nothing that another still needs."""

    def act(board: SharedBoard, rank: int) -> list[float]:
        found = []
        for index in range(NUM_ROUNDS):
            summed, spread = torch.full((3,), float(rank + index)), torch.full((2, 2), float(rank - index))
            board.spread(spread)
            board.add_up(summed)
            parts = board.collect(torch.tensor([rank * index]))
            found += [spread[1, 1].item(), summed[2].item(), *(part.item() for part in parts)]
        return found

    first, second, third = on_all_ranks(3, act)
    expected = [(-index, 3 * index + 3, 0, index, 2 * index) for index in range(NUM_ROUNDS)]
    assert first == [value for row in expected for value in row]
    assert second == third == [value for row in expected for value in row[:2]]


def test_first_rank_that_spreads_waits_for_those_who_read() -> None:
    def act(board: SharedBoard, rank: int) -> list[float]:
        found = []
        for index in range(100):
            tensor = torch.tensor([float(index) if rank == 0 else -1.0])
            board.spread(tensor)
            found.append(tensor.item())
        return found

    assert on_all_ranks(2, act) == [list(range(100))] * 2


def test_tensors_of_no_rows_are_nothing_special() -> None:
    def act(board: SharedBoard, rank: int) -> list[tuple[int, ...]]:
        tensor = torch.empty(0, 4)
        board.add_up(tensor)
        return [tuple(part.shape) for part in board.collect(tensor)]

    assert on_all_ranks(2, act) == [[(0, 4), (0, 4)], []]


@pytest.mark.parametrize(
    ("tensor", "is_taken"),
    [
        (torch.empty(BUFFER_BYTES, dtype=torch.uint8), True),
        (torch.empty(BUFFER_BYTES + 1, dtype=torch.uint8), False),
        (torch.empty(4, 4).T, False),
    ],
    ids=["full", "too large", "not contiguous"],
)
def test_small_tensors_in_one_piece_are_taken(tensor: torch.Tensor, is_taken: bool) -> None:
    assert SharedBoard.takes(tensor) == is_taken


def test_who_does_not_come_is_named_at_the_deadline() -> None:
    def act(board: SharedBoard, rank: int) -> str:
        if rank == 1:
            return ""
        with pytest.raises(RuntimeError) as caught:
            board.add_up(torch.ones(1))
        return str(caught.value)

    assert on_all_ranks(2, act, deadline_s=0.3) == ["tensor rank 1 did not come", ""]


def test_who_has_left_is_not_waited_for() -> None:
    def act(board: SharedBoard, rank: int) -> str:
        if rank == 1:
            board.leave()
            return ""
        with pytest.raises(RuntimeError) as caught:
            board.add_up(torch.ones(1))
        return str(caught.value)

    assert on_all_ranks(2, act) == ["tensor rank 1 has left", ""]


def test_what_was_said_before_leaving_is_heard() -> None:
    def act(board: SharedBoard, rank: int) -> list[float]:
        parts = board.collect(torch.tensor([float(rank)]))
        if rank == 1:
            board.leave()
        return [part.item() for part in parts]

    assert on_all_ranks(2, act) == [[0.0, 1.0], []]


def test_what_is_like_a_tensor_of_a_step_may_be_said_outside_of_steps() -> None:
    """Parts are kept: those made in inference mode, where steps are taken, must be of use without it."""

    def act(board: SharedBoard, rank: int) -> list[float]:
        with torch.inference_mode():
            steps = [board.collect(torch.full((2,), float(rank))) for _ in range(2)]
        outside = [board.collect(torch.full((2,), rank + 0.5)) for _ in range(2)]
        return [part[1].item() for parts in steps + outside for part in parts]

    assert on_all_ranks(2, act) == [[0.0, 1.0] * 2 + [0.5, 1.5] * 2, []]


def test_parts_of_other_shapes_and_types_follow_each_other() -> None:
    """Each as large as the one before, so that only what it is told apart by differs."""
    alike = [torch.ones(4, 2), torch.ones(2, 4), torch.ones(2, 4, dtype=torch.int32), torch.ones(8)]

    def act(board: SharedBoard, rank: int) -> list[torch.Tensor]:
        tensors = [tensor.clone() for tensor in alike for _ in range(3)]
        for tensor in tensors:
            board.add_up(tensor)
        return tensors

    for found in on_all_ranks(2, act):
        assert all(torch.equal(summed, 2 * alike[index // 3]) for index, summed in enumerate(found))


def test_memory_has_no_name_once_it_is_shared() -> None:
    store = memory_store()
    with ThreadPoolExecutor(2) as pool:
        boards = pool.map(lambda rank: open_board("board", rank, 2, store, DEADLINE_S), range(2))
        assert None not in boards
    assert not Path(store.get("board").decode()).exists()


class BlindStore:
    """A store through which the second rank is told of memory that it can't see, as on another host."""

    def __init__(self, store: Store, rank: int) -> None:
        self._store = store
        self._rank = rank

    def set(self, key: str, value: str) -> None:
        self._store.set(key, value)

    def check(self, keys: list[str]) -> bool:
        return self._store.check(keys)

    def get(self, key: str) -> bytes:
        is_name = key == "board" and self._rank == 1
        return b"kvasir-elsewhere" if is_name else self._store.get(key)


def test_nobody_uses_memory_that_one_does_not_see() -> None:
    store = memory_store()
    with ThreadPoolExecutor(2) as pool:
        boards = pool.map(lambda rank: open_board("board", rank, 2, BlindStore(store, rank), DEADLINE_S), range(2))
        assert list(boards) == [None, None]


def _sit_down_and_die(name: str) -> None:
    SharedBoard(SharedSegment.attach(name, (2, RANK_BYTES), torch.uint8).tensor, 1, DEADLINE_S)


def test_death_of_a_process_is_seen_before_the_deadline() -> None:
    segment = SharedSegment.create(f"kvasir-test-board-{os.getpid()}{SUFFIX}", (2, RANK_BYTES), torch.uint8)
    child = multiprocessing.get_context("spawn").Process(target=_sit_down_and_die, args=(segment.name,))
    child.start()
    child.join()
    segment.remove()
    board = SharedBoard(segment.tensor, 0, deadline_s=1e6)
    with pytest.raises(RuntimeError, match="tensor rank 1 has left"):
        board.add_up(torch.ones(1))


class LastWill:
    """A store whose user is killed as soon as it has told the others where the memory is."""

    def __init__(self, will: Path) -> None:
        self._will = will

    def set(self, key: str, value: str) -> None:
        self._will.write_text(value)
        os.kill(os.getpid(), signal.SIGKILL)

    def check(self, keys: list[str]) -> bool:
        return False

    def get(self, key: str) -> bytes:
        return b""


def _open_board_and_be_killed(will: Path) -> None:
    open_board("board", 0, 2, LastWill(will), DEADLINE_S)


def test_memory_of_a_rank_that_was_killed_before_all_had_it_is_found_and_taken_away(tmp_path: Path) -> None:
    will = tmp_path / "will"
    child = multiprocessing.get_context("spawn").Process(target=_open_board_and_be_killed, args=(will,))
    child.start()
    child.join()
    remove_abandoned_segments()
    name = will.read_text()
    assert name.startswith("kvasir-board-")
    assert not (SHARED_MEMORY / name).exists()
