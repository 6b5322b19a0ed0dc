"""What of a segment of shared memory a process has mapped."""

from pathlib import Path


def mapped_bytes(name: str, process: int | str = "self") -> int:
    """Physical memory that it reaches by the segment of this name; by the place where that is most, if it has
    several."""
    lines = Path(f"/proc/{process}/smaps").read_text().splitlines()
    places = [index for index, line in enumerate(lines) if name in line]
    assert places, f"{name} has no place in process {process}"
    return max(_resident_bytes(lines[place:]) for place in places)


def _resident_bytes(lines: list[str]) -> int:
    """Of the first place in these lines."""
    resident = next(line for line in lines if line.startswith("Rss:"))
    return 1024 * int(resident.split()[1])
