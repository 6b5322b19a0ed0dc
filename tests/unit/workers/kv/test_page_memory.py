"""Segments of shared memory: who makes them, who maps them, who removes them."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from kvasir_protocol.errors import OutOfMemory
from kvasir_workers.kv.page_memory import SHARED_MEMORY, SUFFIX, PageShape, SharedSegment, remove_abandoned_segments

SHAPE: PageShape = (2, 2, 3, 4, 1, 2)
NAME = f"kvasir-test-memory-{os.getpid()}"


@pytest.fixture
def segment() -> Iterator[SharedSegment]:
    made = SharedSegment.create(NAME, SHAPE, torch.float32)
    yield made
    made.remove()


def test_new_segment_is_zero_and_of_its_shape(segment: SharedSegment) -> None:
    assert segment.tensor.shape == torch.Size(SHAPE)
    assert not segment.tensor.any()


def test_new_segment_is_its_owners_alone(segment: SharedSegment) -> None:
    assert (SHARED_MEMORY / segment.name).stat().st_mode & 0o077 == 0


def test_memory_is_set_aside_at_once(segment: SharedSegment) -> None:
    assert (SHARED_MEMORY / segment.name).stat().st_blocks > 0


def test_what_one_side_writes_the_other_reads(segment: SharedSegment) -> None:
    reader = SharedSegment.attach(NAME, SHAPE, torch.float32)
    segment.tensor[1, 0, 2, 3, 0, 1] = 7.5
    reader.tensor[0, 1, 0, 0, 0, 0] = -2.5
    assert float(reader.tensor[1, 0, 2, 3, 0, 1]) == 7.5
    assert float(segment.tensor[0, 1, 0, 0, 0, 0]) == -2.5


def test_reader_does_not_remove_the_name(segment: SharedSegment) -> None:
    SharedSegment.attach(NAME, SHAPE, torch.float32).remove()
    assert (SHARED_MEMORY / segment.name).exists()


def test_owner_removes_the_name_and_readers_keep_the_memory(segment: SharedSegment) -> None:
    reader = SharedSegment.attach(NAME, SHAPE, torch.float32)
    segment.remove()
    segment.remove()
    segment.tensor.fill_(3)
    assert not (SHARED_MEMORY / NAME).exists()
    assert bool((reader.tensor == 3).all())


def test_name_in_use_is_refused(segment: SharedSegment) -> None:
    with pytest.raises(FileExistsError):
        SharedSegment.create(segment.name, SHAPE, torch.float32)


def test_segment_of_another_size_is_refused(segment: SharedSegment) -> None:
    with pytest.raises(ValueError, match="has 384 bytes, expected 192"):
        SharedSegment.attach(segment.name, SHAPE, torch.float16)


def test_segment_of_another_host_is_not_found() -> None:
    with pytest.raises(FileNotFoundError):
        SharedSegment.attach("kvasir-nowhere", SHAPE, torch.float32)


def test_name_cannot_lead_out_of_shared_memory(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(bytes(384))
    with pytest.raises(FileNotFoundError):
        SharedSegment.attach(f"../..{tmp_path}/file", SHAPE, torch.float32)


def test_segment_that_does_not_fit_is_out_of_memory_and_leaves_nothing() -> None:
    shape: PageShape = (1024, 2, 1024, 1024, 128, 128)
    with pytest.raises(OutOfMemory, match=r"/dev/shm has no room for .* MiB of pages; lower the KV cache size"):
        SharedSegment.create(NAME, shape, torch.float32)
    assert not (SHARED_MEMORY / NAME).exists()


ABANDON = """
import os, signal, sys, torch
from kvasir_workers.kv.page_memory import SharedSegment
segment = SharedSegment.create(sys.argv[1], (2, 2, 3, 4, 1, 2), torch.float32)
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_segment_of_a_maker_that_was_killed_is_taken_away_and_those_of_the_living_are_not() -> None:
    abandoned, alive, other = f"{NAME}-killed{SUFFIX}", f"{NAME}-alive{SUFFIX}", f"{NAME}-no-segment"
    subprocess.run([sys.executable, "-c", ABANDON, abandoned])
    segment = SharedSegment.create(alive, SHAPE, torch.float32)
    reader = SharedSegment.attach(abandoned, SHAPE, torch.float32)
    (SHARED_MEMORY / other).touch()
    try:
        assert abandoned in remove_abandoned_segments()
        assert [(SHARED_MEMORY / name).exists() for name in (abandoned, alive, other)] == [False, True, True]
        assert not reader.tensor.any()  # who still maps it keeps the memory
    finally:
        segment.remove()
        (SHARED_MEMORY / other).unlink()


def test_segment_is_locked_from_the_moment_on_in_which_it_can_be_found() -> None:
    segment = SharedSegment.create(f"{NAME}{SUFFIX}", SHAPE, torch.float32)
    assert segment.name not in remove_abandoned_segments()
    assert not list(SHARED_MEMORY.glob(f".{NAME}*"))
    segment.remove()
