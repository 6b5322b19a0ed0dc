"""What loading takes for a while does not stay, and never adds up."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from kvasir_workers.model.loader import weight_bytes
from kvasir_workers.quantization.scheme import find_scheme
from kvasir_workers.reclaim import give_back_read
from tests.checkpoints import make_checkpoint

MIB = 2**20

_LOAD = """
import re, sys
from pathlib import Path
import torch
from kvasir_kernels.dispatch import prepare
from kvasir_protocol.config import EngineConfig, ModelConfig
from kvasir_workers.load import load_model

def memory(name):
    return int(re.search(name + r":\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1])

torch.set_num_threads(1)
prepare(torch.device("cpu"))
before = memory("VmRSS")
model = ModelConfig(path=sys.argv[1], served_name="m", quantization=sys.argv[2] or None)
loaded = load_model(model, EngineConfig(device="cpu", kv_cache_bytes=2**20))
print(memory("VmHWM") - before)
"""


def resident_kib(address: int) -> int:
    """Of the mapping that holds the address."""
    for mapping in re.split(r"\n(?=[0-9a-f]+-[0-9a-f]+ )", Path("/proc/self/smaps").read_text()):
        start, end = (int(number, 16) for number in mapping.split(" ", 1)[0].split("-"))
        if start <= address < end and (found := re.search(r"Rss:\s+(\d+) kB", mapping)):
            return int(found[1])
    raise AssertionError(f"nothing is mapped at {address:x}")


def test_mapped_numbers_that_were_read_take_no_memory_and_come_back_when_asked_for(tmp_path: Path) -> None:
    numbers = torch.arange(2 * MIB, dtype=torch.int32)
    numbers.numpy().tofile(tmp_path / "numbers")
    mapped = torch.from_file(str(tmp_path / "numbers"), shared=False, size=len(numbers), dtype=torch.int32)
    assert torch.equal(mapped, numbers)
    assert resident_kib(mapped.data_ptr()) >= 8 * 1024
    give_back_read(mapped)
    assert resident_kib(mapped.data_ptr()) < 1024
    assert torch.equal(mapped, numbers)


def test_numbers_beside_those_given_back_stay() -> None:
    numbers = torch.arange(4 * MIB, dtype=torch.int32)
    give_back_read(numbers[1000 : 2 * MIB + 1])
    assert torch.equal(numbers[:1000], torch.arange(1000, dtype=torch.int32))
    assert torch.equal(numbers[2 * MIB + 1 :], torch.arange(2 * MIB + 1, 4 * MIB, dtype=torch.int32))


def test_less_than_a_page_is_left_alone() -> None:
    numbers = torch.arange(100)
    give_back_read(numbers[3:7])
    assert torch.equal(numbers, torch.arange(100))


@pytest.fixture(scope="module")
def large_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """200 MiB of float32, in matrices of at most 16."""
    sizes = {"vocab_size": 256, "hidden_size": 1024, "intermediate_size": 2048, "num_hidden_layers": 8}
    return make_checkpoint(tmp_path_factory.mktemp("large"), "Qwen3ForCausalLM", **sizes)


@pytest.mark.parametrize("scheme", ["", "int8", "int4", "fp8", "fp8-block"])
def test_loading_takes_at_its_peak_the_weights_that_it_leaves_and_a_few_matrices(
    large_checkpoint: Path, scheme: str
) -> None:
    done = subprocess.run(
        [sys.executable, "-c", _LOAD, str(large_checkpoint), scheme], capture_output=True, text=True, check=True
    )
    left = weight_bytes(large_checkpoint, torch.float32, find_scheme(scheme or None))
    assert int(done.stdout) * 1024 - left < weight_bytes(large_checkpoint, torch.float32) / 2
