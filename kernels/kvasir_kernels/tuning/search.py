"""The fastest tile that computes what the reference does: all candidates of one problem, one after the other."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Protocol

import torch
from torch import Tensor
from triton.errors import TritonError

from kvasir_kernels.tuning.choices import forced
from kvasir_kernels.tuning.table import Choice, Place, Tile, TileKey

if TYPE_CHECKING:
    from _typeshed import DataclassInstance


class TuningError(Exception):
    """A problem for which not even the default tile works."""


class Clock(Protocol):
    """Seconds of a computation on the device: the median of several runs, none with warm caches."""

    def seconds(self, work: Callable[[], object]) -> float: ...


@dataclass(frozen=True, slots=True)
class Problem:
    """One operation at one shape. candidates: the default first.

    compute: the operation as a model calls it, with whatever tile is forced. reference: what it must come near to.
    """

    key: TileKey
    candidates: "tuple[DataclassInstance, ...]"
    compute: Callable[[], Tensor]
    reference: Callable[[], Tensor]
    tolerance: float


@dataclass(slots=True)
class Search:
    """What came of each candidate. refused: why some of them can't be taken."""

    seconds: list[tuple[Tile, float]] = field(default_factory=list)
    refused: list[tuple[Tile, str]] = field(default_factory=list)


def tune(problem: Problem, clock: Clock, place: Place) -> tuple[Choice, Search]:
    """Try all candidates. Raises TuningError if the default is none that can be taken."""
    expected, search = problem.reference(), Search()
    for candidate in problem.candidates:
        tile: Tile = asdict(candidate)
        with forced({problem.key: tile}):
            reason = _fault(problem, expected)
            if reason is None:
                search.seconds.append((tile, clock.seconds(problem.compute)))
            else:
                search.refused.append((tile, reason))
    default = asdict(problem.candidates[0])
    if not search.seconds or search.seconds[0][0] != default:
        raise TuningError(f"{problem.key}: the default tile {_named(default)} is refused: {search.refused[0][1]}")
    fastest, seconds = min(search.seconds, key=lambda measured: measured[1])
    return Choice(problem.key, place, fastest, seconds, search.seconds[0][1]), search


def _fault(problem: Problem, expected: Tensor) -> str | None:
    """Why what is forced can't be taken; None if it computes what it should."""
    try:
        with _new_memory_is_nan():
            actual = problem.compute()
        error = (actual.float() - expected.float()).abs()
        allowed = problem.tolerance * (1 + expected.float().abs())
        # A NaN is no more than anything.
        return None if bool((error <= allowed).all()) else f"it is wrong by up to {error.max().item():.3g}"
    except (TritonError, RuntimeError) as problem_met:
        return str(problem_met).strip().partition("\n")[0] or type(problem_met).__name__


@contextmanager
def _new_memory_is_nan() -> Iterator[None]:
    """Else what the candidate before it has left there might pass for a result."""
    before = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before[0], warn_only=before[1])


def _named(tile: Mapping[str, int]) -> str:
    return ", ".join(f"{name} {number}" for name, number in tile.items())
