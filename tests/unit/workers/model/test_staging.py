"""File to device through a ring of buffers, here with a lane whose copies happen as late as they may."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from kvasir_protocol.errors import CheckpointError
from kvasir_workers.model.checkpoint import open_tensors
from kvasir_workers.model.staged_file import StagedFile, open_staged
from kvasir_workers.model.staging import Block, Staging

CPU = torch.device("cpu")


class LateLane:
    """A copy happens when somebody waits for it: whoever writes to a buffer before has spoilt it."""

    def __init__(self) -> None:
        self.buffer_bytes: list[int] = []
        self.num_copies = self.num_made = 0

    def buffer(self, num_bytes: int) -> Tensor:
        self.buffer_bytes.append(num_bytes)
        return torch.empty(num_bytes, dtype=torch.uint8)

    def copy(self, source: Tensor, target: Tensor) -> Callable[[], None]:
        self.num_copies += 1

        def happen() -> None:
            target.copy_(source)
            self.num_made += 1

        return happen


def numbers(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape))).to(dtype)


TENSORS = {
    "matrix": numbers(37, 50),
    "half": numbers(64, 24, dtype=torch.bfloat16),
    "vector": numbers(99),
    "cube": numbers(5, 6, 7),
    "eight": numbers(20, 16, dtype=torch.float8_e4m3fn),
    "one": torch.tensor(3.5),
    "nothing": torch.empty(0, 3),
}
PARTS: list[tuple[str, tuple[slice, ...]]] = [
    *((name, ()) for name in TENSORS),
    ("matrix", (slice(3, 30),)),
    ("matrix", (slice(3, 30), slice(7, 50))),
    ("matrix", (slice(0, 37), slice(0, 1))),
    ("half", (slice(0, 64), slice(12, 24))),
    ("vector", (slice(98, 99),)),
    ("cube", (slice(1, 4), slice(2, 3))),
    ("eight", (slice(5, 6), slice(3, 11))),
]


@pytest.fixture
def file(tmp_path: Path) -> Path:
    save_file(TENSORS, tmp_path / "x.safetensors", metadata={"format": "pt"})
    return tmp_path / "x.safetensors"


def assert_same(actual: Tensor, expected: Tensor) -> None:
    assert (actual.dtype, actual.shape) == (expected.dtype, expected.shape)
    assert torch.equal(actual.flatten().view(torch.uint8), expected.flatten().view(torch.uint8))


@pytest.mark.parametrize("buffer_bytes", [4, 64, 1000, 2**20])
@pytest.mark.parametrize("num_buffers", [1, 3])
def test_whatever_part_is_asked_for_comes_whole(file: Path, num_buffers: int, buffer_bytes: int) -> None:
    lane = LateLane()
    with open_staged(file, CPU, Staging(lane, num_buffers, buffer_bytes)) as stored:
        found = [stored.get_slice(name)[part] for name, part in PARTS]
    for (name, part), tensor in zip(PARTS, found, strict=True):
        assert_same(tensor, TENSORS[name][part].contiguous() if part else TENSORS[name])
    assert lane.buffer_bytes == [buffer_bytes] * num_buffers


def test_it_says_of_the_tensors_what_the_library_says(file: Path) -> None:
    with open_staged(file, CPU, Staging(LateLane(), 1, 64)) as stored, open_tensors(file) as expected:
        assert sorted(stored.keys()) == sorted(expected.keys())
        for name in TENSORS:
            ours, theirs = stored.get_slice(name), expected.get_slice(name)
            assert (ours.get_shape(), ours.get_dtype()) == (theirs.get_shape(), theirs.get_dtype())


def test_several_buffers_are_filled_before_the_first_is_waited_for(file: Path) -> None:
    lane = LateLane()
    with open_staged(file, CPU, Staging(lane, 4, 1024)) as stored:
        target = stored.get_slice("matrix")[(slice(0, 20),)]
        assert (lane.num_copies, lane.num_made) == (4, 0)
    assert_same(target, TENSORS["matrix"][:20].contiguous())


def _bytes_read(read: Callable[[StagedFile], object], file: Path) -> int:
    """By this process, from files of any kind."""

    def total() -> int:
        return int(Path("/proc/self/io").read_text().split()[1])

    with open_staged(file, CPU, Staging(LateLane(), 2, 2**16)) as stored:
        before, between = total(), total()
        read(stored)
        return total() - between - (between - before)


@pytest.mark.parametrize("part", [(slice(3, 30),), (slice(3, 30), slice(7, 20))])
def test_nothing_beyond_the_part_is_read(file: Path, part: tuple[slice, ...]) -> None:
    wanted = TENSORS["matrix"][part]
    assert _bytes_read(lambda stored: stored.get_slice("matrix")[part], file) == wanted.numel() * 4


@pytest.mark.parametrize("cut", [4, 100, -1])
def test_a_file_that_ends_too_soon_is_refused(file: Path, cut: int) -> None:
    os.truncate(file, cut if cut > 0 else file.stat().st_size - 1)

    def read_all() -> None:
        with open_staged(file, CPU, Staging(LateLane(), 2, 64)) as stored:
            for name in TENSORS:
                stored.get_tensor(name)

    with pytest.raises(CheckpointError, match=r"download it again"):
        read_all()


def test_a_file_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="No such file"), open_staged(tmp_path / "none", CPU, Staging(LateLane())):
        pass


@pytest.mark.parametrize("block", [Block(5, 12, 12, 7), Block(0, 12, 40, 7), Block(3, 100, 200, 3), Block(0, 9, 9, 1)])
@pytest.mark.parametrize("size", [1, 12, 13, 50, 1000])
def test_pieces_of_a_block_are_its_bytes_in_order(block: Block, size: int) -> None:
    def bytes_of(some: Block) -> list[int]:
        return [some.offset + run * some.stride + i for run in range(some.count) for i in range(some.run_bytes)]

    pieces = list(block.pieces(size))
    assert [place for piece in pieces for place in bytes_of(piece)] == bytes_of(block)
    assert all(piece.num_bytes <= size for piece in pieces)


BOUNDED = """
import resource, sys
from pathlib import Path
import torch
from kvasir_workers.model.staged_file import open_staged
from kvasir_workers.model.staging import Staging

class Lane:
    def buffer(self, num_bytes):
        return torch.empty(num_bytes, dtype=torch.uint8)
    def copy(self, source, target):
        target.copy_(source)
        return lambda: None

target = torch.zeros(128 * 2**20, dtype=torch.uint8)
with open_staged(Path(sys.argv[1]), torch.device("cpu"), Staging(Lane(), 4, 2**20)) as stored:
    big = stored.get_slice("big")
    (size,) = (int(line.split()[1]) * 1024 for line in open("/proc/self/status") if line.startswith("VmData"))
    resource.setrlimit(resource.RLIMIT_DATA, (size + int(sys.argv[2]),) * 2)
    for row in range(0, 128, 8):
        target[row * 2**20 : (row + 8) * 2**20] = big[(slice(row, row + 8),)].flatten()
print(int(target.min()))
"""


def test_what_passes_through_needs_little_more_memory_than_the_largest_part(tmp_path: Path) -> None:
    """128 MiB go by in parts of 8 while the process may take 48 more, of which the stacks of threads are 32."""
    save_file({"big": torch.ones(128, 2**20, dtype=torch.uint8)}, tmp_path / "x.safetensors")

    def run(extra_bytes: int) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-c", BOUNDED, str(tmp_path / "x.safetensors"), str(extra_bytes)]
        # What is freed goes back at once, so that it isn't counted.
        environment = os.environ | {"MALLOC_MMAP_THRESHOLD_": "65536"}
        return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=100)

    bounded = run(48 * 2**20)
    assert bounded.stdout.strip() == "1", bounded.stderr
    assert run(4 * 2**20).returncode != 0, "else the limit would prove nothing"
