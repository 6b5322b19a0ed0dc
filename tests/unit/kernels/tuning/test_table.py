"""Tables of measured tiles as files."""

import json
import resource
from dataclasses import replace
from pathlib import Path

import pytest

from kvasir_kernels.tuning.table import (
    Choice,
    Place,
    TableError,
    TileKey,
    read_table,
    shipped_tables,
    user_table,
    write_table,
)

CHOICE = Choice(
    key=TileKey("attention of decodes", (32, 8, 128), "bfloat16 over bfloat16"),
    place=Place("NVIDIA H200", "3.6.0"),
    tile={"rows": 16, "keys": 64, "num_warps": 4, "num_stages": 3, "programs": 2},
    seconds=3e-5,
    default_seconds=4e-5,
)


def test_what_was_written_is_read(tmp_path: Path) -> None:
    others = [
        replace(CHOICE, key=replace(CHOICE.key, dtype="float16 over int8")),
        replace(CHOICE, key=replace(CHOICE.key, sizes=(14, 2, 64))),
        replace(CHOICE, place=Place("NVIDIA H100", "3.6.0")),
        replace(CHOICE, place=Place("NVIDIA H200", "3.7.1")),
    ]
    write_table(tmp_path / "tiles.json", [CHOICE, *others])
    assert set(map(str, read_table(tmp_path / "tiles.json"))) == set(map(str, [CHOICE, *others]))


def test_a_new_choice_takes_the_place_of_the_old_one_and_leaves_others(tmp_path: Path) -> None:
    file = tmp_path / "cache" / "tiles.json"
    other, newer = replace(CHOICE, key=replace(CHOICE.key, op="other")), replace(CHOICE, tile={"rows": 64})
    write_table(file, [CHOICE, other])
    write_table(file, [newer])
    assert sorted(read_table(file), key=str) == sorted([other, newer], key=str)
    assert [path.name for path in file.parent.iterdir()] == ["tiles.json"]


def test_a_full_disk_leaves_a_table_as_it_was_and_nothing_beside_it(tmp_path: Path) -> None:
    file, largest = tmp_path / "tiles.json", resource.getrlimit(resource.RLIMIT_FSIZE)
    write_table(file, [CHOICE])
    resource.setrlimit(resource.RLIMIT_FSIZE, (10, largest[1]))
    try:
        with pytest.raises(OSError, match="File too large"):
            write_table(file, [replace(CHOICE, place=Place("NVIDIA H100", "3.6.0"))])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, largest)
    assert read_table(file) == (CHOICE,)
    assert [path.name for path in tmp_path.iterdir()] == ["tiles.json"]


def test_no_file_holds_no_choices(tmp_path: Path) -> None:
    assert read_table(tmp_path / "none.json") == ()


@pytest.mark.parametrize(
    "text", ["", "[]", '{"choices": [{}]}', '{"choices": [3]}', json.dumps({"choices": [{"op": "x", "sizes": 3}]})]
)
def test_a_file_that_is_no_table_is_named(tmp_path: Path, text: str) -> None:
    file = tmp_path / "tiles.json"
    file.write_text(text)
    with pytest.raises(TableError, match=r"tiles\.json is no table of tiles"):
        read_table(file)


def test_the_users_table_lies_in_the_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert user_table() == tmp_path / "kvasir" / "tiles.json"


def test_a_user_without_a_home_has_no_table(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setenv("HOME", "~")  # what is left of "~" where no home is known
    assert user_table() is None


def test_every_table_that_is_shipped_can_be_read() -> None:
    assert all(read_table(file) for file in shipped_tables())
