"""What a process says of its memory."""

from pathlib import Path

from kvasir_workers.resident_memory import resident_bytes


def test_memory_of_this_process_is_told() -> None:
    assert resident_bytes() > 2**20


def test_memory_that_the_system_does_not_tell_counts_as_none(tmp_path: Path) -> None:
    assert resident_bytes(tmp_path / "statm") == 0
