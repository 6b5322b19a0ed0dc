"""Our own safetensors files: what the library reads, in our order."""

from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from kvasir_workers.engine_directory.tensor_file import sha256_of, write_tensors
from kvasir_workers.model.tensor_size import TensorSize

TENSORS = {
    "z": torch.arange(6, dtype=torch.float32).view(2, 3),
    "a": torch.tensor([1.5, torch.nan], dtype=torch.bfloat16),
    "m": torch.randn(3, 5, generator=torch.Generator().manual_seed(0)).to(torch.float8_e4m3fn),
    "b": torch.arange(-4, 4, dtype=torch.int8),
    "empty": torch.empty(0, 4),
    "c": torch.arange(8, dtype=torch.uint8).view(2, 4).T,
    "h": torch.ones(3, dtype=torch.float16),
}
SIZES = {name: TensorSize(tensor.dtype, tuple(tensor.shape)) for name, tensor in TENSORS.items()}


def test_the_library_reads_the_same_bits(tmp_path: Path) -> None:
    write_tensors(tmp_path / "x.safetensors", SIZES, TENSORS.values())
    with safe_open(tmp_path / "x.safetensors", framework="pt") as stored:
        assert sorted(stored.keys()) == sorted(TENSORS)
        for name, tensor in TENSORS.items():
            read = stored.get_tensor(name)
            assert (read.dtype, read.shape) == (tensor.dtype, tensor.shape)
            assert torch.equal(read.contiguous().view(torch.uint8), tensor.contiguous().view(torch.uint8))


def test_tensors_lie_in_the_order_in_which_they_came(tmp_path: Path) -> None:
    file = tmp_path / "x.safetensors"
    write_tensors(file, SIZES, TENSORS.values())
    content = file.read_bytes()
    places = [content.index(TENSORS[name].contiguous().view(torch.uint8).numpy().tobytes()) for name in "zamb"]
    assert places == sorted(places)
    assert places[0] == 4096


def test_the_checksum_is_that_of_the_file(tmp_path: Path) -> None:
    file = tmp_path / "x.safetensors"
    assert write_tensors(file, SIZES, TENSORS.values()) == sha256_of(file)


def test_a_tensor_that_was_announced_otherwise_is_not_written(tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match="z"):
        write_tensors(tmp_path / "x", {"z": TensorSize(torch.float32, (3, 2))}, [TENSORS["z"]])
