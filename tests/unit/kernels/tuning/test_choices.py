"""Which tile a launch gets."""

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from kvasir_kernels.tuning.table import Choice, Place, TileKey, write_table

choices = pytest.importorskip("kvasir_kernels.tuning.choices", reason="needs Triton", exc_type=ImportError)

KEY = TileKey("attention of decodes", (32, 8, 128), "bfloat16 over bfloat16")
HERE = Place("NVIDIA H200", "3.6.0")


@dataclass(frozen=True)
class Tile:
    rows: int
    num_warps: int = 4


def table(file: Path, tile: Mapping[str, int], place: Place = HERE, key: TileKey = KEY) -> Path:
    write_table(file, [Choice(key, place, tile, 1.0, 2.0)])
    return file


def test_the_first_table_that_knows_the_key_is_taken(tmp_path: Path) -> None:
    other_key = TileKey("float8 product", (16, 64, 64), "float8")
    files = (
        tmp_path / "none.json",
        table(tmp_path / "other.json", {"rows": 1}, key=other_key),
        table(tmp_path / "user.json", {"rows": 32}),
        table(tmp_path / "shipped.json", {"rows": 64}),
    )
    book = choices.ChoiceBook(files, HERE)
    assert book.find(KEY) == {"rows": 32}
    assert book.find(other_key) == {"rows": 1}


@pytest.mark.parametrize("place", [Place("NVIDIA H100", "3.6.0"), Place("NVIDIA H200", "3.7.1")])
def test_what_another_device_or_another_triton_has_found_is_not_taken(
    tmp_path: Path, place: Place, caplog: pytest.LogCaptureFixture
) -> None:
    book = choices.ChoiceBook((table(tmp_path / "tiles.json", {"rows": 32}, place),), HERE)
    assert book.find(KEY) is None
    assert "1 choices are for others" in caplog.text


def test_an_untuned_default_is_said_once(caplog: pytest.LogCaptureFixture) -> None:
    book = choices.ChoiceBook((), HERE)
    for sizes in ((32, 8, 128), (32, 8, 128), (16, 8, 64)):
        book.find(TileKey("attention of decodes", sizes, "bfloat16 over bfloat16"))
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    assert "attention of decodes 32x8x128" in record.message
    assert "NVIDIA H200 with Triton 3.6.0" in record.message
    assert "`kvasir tune MODEL`" in record.message


def test_a_table_that_is_damaged_is_said_and_left_out(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "damaged.json").write_text("{")
    book = choices.ChoiceBook((tmp_path / "damaged.json", table(tmp_path / "tiles.json", {"rows": 32})), HERE)
    assert book.find(KEY) == {"rows": 32}
    assert "damaged.json is no table" in caplog.text


def test_the_default_is_taken_where_nothing_is_tuned() -> None:
    assert choices.chosen(KEY, Tile(16), torch.device("cpu")) == Tile(16)


def test_what_is_forced_is_taken_and_only_inside() -> None:
    with choices.forced({KEY: {"rows": 32}}):
        assert choices.chosen(KEY, Tile(16, 8), torch.device("cpu")) == Tile(32, 8)
        other = TileKey(KEY.op, (1, 1, 1), KEY.dtype)
        assert choices.chosen(other, Tile(16), torch.device("cpu")) == Tile(16)
    assert choices.chosen(KEY, Tile(16), torch.device("cpu")) == Tile(16)


def test_numbers_that_a_tile_has_no_more_are_left_out() -> None:
    with choices.forced({KEY: {"rows": 32, "depth": 7}}):
        assert choices.chosen(KEY, Tile(16), torch.device("cpu")) == Tile(32)


def test_all_choices_of_one_place_are_told(tmp_path: Path) -> None:
    first = table(tmp_path / "a.json", {"rows": 32})
    second = table(tmp_path / "b.json", {"rows": 64})
    table(second, {"rows": 8}, Place("NVIDIA H100", "3.6.0"))
    assert [choice.tile for choice in choices.choices_at(HERE, (first, second))] == [{"rows": 32}]
