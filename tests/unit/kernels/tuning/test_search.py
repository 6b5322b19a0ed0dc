"""The search for the fastest right tile, under a clock that is turned by hand."""

from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from kvasir_kernels.tuning.table import Place, TileKey

search = pytest.importorskip("kvasir_kernels.tuning.search", reason="needs Triton", exc_type=ImportError)
choices = pytest.importorskip("kvasir_kernels.tuning.choices", reason="needs Triton", exc_type=ImportError)
errors = pytest.importorskip("triton.runtime.errors", reason="needs Triton", exc_type=ImportError)

KEY = TileKey("doubling", (4,), "float32")
HERE = Place("NVIDIA H200", "3.6.0")
X = torch.arange(4.0)


@dataclass(frozen=True)
class Tile:
    rows: int


class CountedClock:
    """Says what it was told to, one after the other, and how often each computation ran."""

    def __init__(self, *seconds: float) -> None:
        self._seconds = list(seconds)

    def seconds(self, work: Callable[[], object]) -> float:
        work()
        return self._seconds.pop(0)


def double() -> Tensor:
    """Right for tiles of up to 64 rows; nothing for 128, wrong for 256, no room for 512."""
    rows = choices.chosen(KEY, Tile(0), X.device).rows
    if rows == 512:
        raise errors.OutOfResources(9, 5, "shared memory")
    out = torch.empty(4)
    return out if rows == 128 else out.copy_(X * (3 if rows == 256 else 2))


def test_whatever_triton_can_not_make_of_a_tile_refuses_it() -> None:
    def compute() -> Tensor:
        if choices.chosen(KEY, Tile(0), X.device).rows == 32:
            raise errors.PTXASError("exit status 1")
        return double()

    tried = search.Problem(KEY, (Tile(16), Tile(32)), compute, lambda: X * 2, tolerance=1e-6)
    assert search.tune(tried, CountedClock(1.0), HERE)[1].refused == [({"rows": 32}, "PTXAS error: exit status 1")]


def problem(*rows: int) -> search.Problem:
    tiles = tuple(Tile(number) for number in rows)
    return search.Problem(KEY, tiles, double, lambda: X * 2, tolerance=1e-6)


def test_the_fastest_tile_is_chosen_and_told_beside_the_default() -> None:
    choice, found = search.tune(problem(16, 32, 64), CountedClock(3.0, 1.0, 2.0), HERE)
    assert (choice.tile, choice.seconds, choice.default_seconds) == ({"rows": 32}, 1.0, 3.0)
    assert (choice.key, choice.place) == (KEY, HERE)
    assert [tile["rows"] for tile, _ in found.seconds] == [16, 32, 64]


def test_a_tile_that_is_wrong_or_does_not_fit_is_not_even_timed() -> None:
    choice, found = search.tune(problem(16, 128, 256, 512), CountedClock(3.0), HERE)
    assert choice.tile == {"rows": 16}
    reasons = {tile["rows"]: reason for tile, reason in found.refused}
    assert sorted(reasons) == [128, 256, 512]
    assert reasons[256] == "it is wrong by up to 3"
    assert "out of resource: shared memory" in reasons[512]


def test_a_default_that_is_wrong_is_an_error_and_no_choice() -> None:
    with pytest.raises(search.TuningError, match="doubling 4 float32: the default tile rows 256 is refused"):
        search.tune(problem(256, 16), CountedClock(1.0), HERE)


def test_nothing_stays_forced_or_deterministic() -> None:
    search.tune(problem(16, 512), CountedClock(1.0), HERE)
    assert choices.chosen(KEY, Tile(0), X.device) == Tile(0)
    assert not torch.are_deterministic_algorithms_enabled()
