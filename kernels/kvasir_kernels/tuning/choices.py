"""The one function by which kernels ask for a tile that was measured: `chosen`."""

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import fields, replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import torch
import triton

from kvasir_kernels.tuning.table import Choice, Place, TableError, Tile, TileKey, read_table, shipped_tables, user_table

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

_log = logging.getLogger(__name__)

T = TypeVar("T", bound="DataclassInstance")


class ChoiceBook:
    """The choices of some files that hold at one place; of several for one key, the first file's."""

    def __init__(self, files: tuple[Path, ...], place: Place) -> None:
        self._place = place
        self._tiles: dict[TileKey, Tile] = {}
        self._num_stale = 0
        self._is_silent = False
        for file in reversed(files):
            self._add(file)

    def _add(self, file: Path) -> None:
        try:
            choices = read_table(file)
        except TableError as error:
            _log.warning("%s", error)
            return
        fitting = [choice for choice in choices if choice.place == self._place]
        self._num_stale += len(choices) - len(fitting)
        self._tiles.update({choice.key: choice.tile for choice in fitting})

    def find(self, key: TileKey) -> Tile | None:
        """The tile to take, or None; the first time that there is none is said in the log."""
        tile = self._tiles.get(key)
        if tile is None and not self._is_silent:
            self._is_silent = True
            stale = f" ({self._num_stale} choices are for others)" if self._num_stale else ""
            _log.warning(
                "%s runs with a tile that nobody has measured on %s with Triton %s%s, and others may too; "
                "`kvasir tune MODEL` measures them",
                key, self._place.device, self._place.triton, stale,
            )  # fmt: skip
        return tile


class _Process:
    """What was chosen from outside, for the whole process: steps may run in a thread of their own."""

    forced: Mapping[TileKey, Tile] | None = None
    preferred: tuple[Path, ...] = ()


def chosen(key: TileKey, default: T, device: torch.device) -> T:
    """The default with the numbers that are known to be the best here for this key; itself where none are."""
    if _Process.forced is not None:
        tile = _Process.forced.get(key)
    elif device.type == "cuda":
        tile = _book(device.index or 0).find(key)
    else:
        return default
    return default if tile is None else _with_tile(default, tile)


def _with_tile(default: T, tile: Tile) -> T:
    """A table of another version may name numbers that there are no more."""
    names = {field.name for field in fields(default)}
    return replace(default, **{name: number for name, number in tile.items() if name in names})


def prefer(file: Path) -> None:
    """Ask this table first from now on: an engine directory's own."""
    _Process.preferred = (file, *(other for other in _Process.preferred if other != file))
    _book.cache_clear()


@contextmanager
def forced(tiles: Mapping[TileKey, Tile]) -> Iterator[None]:
    """Take these tiles and no others, on any device: to try them, or to compile for a device that isn't here."""
    before, _Process.forced = _Process.forced, tiles
    try:
        yield
    finally:
        _Process.forced = before


def choices_at(place: Place, files: tuple[Path, ...] | None = None) -> tuple[Choice, ...]:
    """All choices that hold at a place, each key's once. Raises TableError."""
    found: dict[TileKey, Choice] = {}
    for file in _files() if files is None else files:
        for choice in read_table(file):
            if choice.place == place:
                found.setdefault(choice.key, choice)
    return tuple(found.values())


def place_of(device: torch.device) -> Place:
    return Place(torch.cuda.get_device_name(device), triton.__version__)


@cache
def _book(device_index: int) -> ChoiceBook:
    return ChoiceBook(_files(), place_of(torch.device("cuda", device_index)))


def _files() -> tuple[Path, ...]:
    own = user_table()
    return (*_Process.preferred, *((own,) if own is not None else ()), *shipped_tables())
