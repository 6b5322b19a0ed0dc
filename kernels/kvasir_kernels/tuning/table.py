"""Measured choices of tiles as files: JSON, one entry for each operation, shape, dtype, device and version of Triton.

{"choices": [{"op": "attention of decodes", "sizes": [32, 8, 128], "dtype": "bfloat16 over bfloat16",
              "device": "NVIDIA H200", "triton": "3.6.0", "tile": {"rows": 16, "keys": 64, ...},
              "seconds": 3.1e-05, "default_seconds": 3.9e-05}]}
"""

import json
import os
import tempfile
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

Tile = Mapping[str, int]


class TableError(Exception):
    """A file that is no table of choices; the text names it."""


@dataclass(frozen=True, slots=True)
class TileKey:
    """What a choice is for. sizes: those that the operation's own module names. dtype: of what it reads."""

    op: str
    sizes: tuple[int, ...]
    dtype: str

    def __str__(self) -> str:
        return f"{self.op} {'x'.join(map(str, self.sizes))} {self.dtype}"


@dataclass(frozen=True, slots=True)
class Place:
    """Where a choice holds: a device by its name, and a version of Triton."""

    device: str
    triton: str


@dataclass(frozen=True, slots=True)
class Choice:
    """The fastest tile that computed what the reference does. default_seconds: of the tile that is taken untuned."""

    key: TileKey
    place: Place
    tile: Tile
    seconds: float
    default_seconds: float


def user_table() -> Path | None:
    """What this user has measured on this host's devices; None for one who has no home."""
    try:
        return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "kvasir" / "tiles.json"
    except RuntimeError:
        return None


def shipped_tables() -> tuple[Path, ...]:
    """What was measured before this version went out."""
    return tuple(sorted((Path(__file__).parents[1] / "tuned").glob("*.json")))


def read_table(file: Path) -> tuple[Choice, ...]:
    """The choices in a file; none, where there is no file. Raises TableError."""
    try:
        return tuple(_choice(entry) for entry in json.loads(file.read_text())["choices"])
    except FileNotFoundError:
        return ()
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise TableError(f"{file} is no table of tiles ({error!r}); remove it, or tune again") from error


def write_table(file: Path, choices: Iterable[Choice]) -> None:
    """Put choices in a file beside those that it has; for the same key and place the new one stays.

    The file is whole at any time. Raises TableError where what is there can't be read, OSError.
    """
    merged = {(choice.key, choice.place): choice for choice in (*read_table(file), *choices)}
    file.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=file.parent, prefix=file.name) as folder:
        scratch = Path(folder) / file.name
        scratch.write_text(
            json.dumps({"choices": [_entry(merged[name]) for name in sorted(merged, key=str)]}, indent=1)
        )
        scratch.replace(file)


def _entry(choice: Choice) -> dict[str, object]:
    times = {"seconds": choice.seconds, "default_seconds": choice.default_seconds}
    return {**asdict(choice.key), **asdict(choice.place), "tile": dict(choice.tile), **times}


def _choice(entry: Mapping[str, object]) -> Choice:
    sizes, tile = entry["sizes"], entry["tile"]
    if not isinstance(sizes, list) or not isinstance(tile, dict):
        raise TypeError(f"sizes and tile of {entry}")
    if not all(isinstance(number, int) for number in (*sizes, *tile.values())):
        raise TypeError(f"sizes and tiles are whole numbers, not {sizes} and {tile}")
    return Choice(
        key=TileKey(str(entry["op"]), tuple(sizes), str(entry["dtype"])),
        place=Place(str(entry["device"]), str(entry["triton"])),
        tile=tile,
        seconds=float(str(entry["seconds"])),
        default_seconds=float(str(entry["default_seconds"])),
    )
