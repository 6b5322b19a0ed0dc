"""The Triton kernels against their references, in Triton's interpreter, and that they compile as is written down.

All in processes of their own: Triton reads TRITON_INTERPRET once, when it is imported, and the CPU does without it.
"""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.kernel_cases.all_cases import CASES

ROOT = Path(__file__).parents[3]

# All cases are computed before the first is looked at: a minute, and some on a busy machine.
LIMIT_S = 600
pytestmark = pytest.mark.timeout(LIMIT_S)

needs_triton = pytest.mark.skipif(
    importlib.util.find_spec("triton") is None, reason="Triton is not installed: there is none for this platform"
)


@pytest.fixture(scope="module")
def outcomes() -> dict[str, str | None]:
    run = subprocess.run(
        [sys.executable, "-m", "tests.kernel_cases.all_cases"],
        cwd=ROOT, env=os.environ | {"TRITON_INTERPRET": "1"}, capture_output=True, text=True, timeout=LIMIT_S,
    )  # fmt: skip
    assert run.returncode == 0, run.stderr
    result: dict[str, str | None] = json.loads(run.stdout)
    return result


@needs_triton
@pytest.mark.parametrize("case", CASES)
def test_interpreted_kernel_equals_its_reference(outcomes: dict[str, str | None], case: str) -> None:
    assert outcomes[case] is None, outcomes[case]


@needs_triton
def test_compiled_kernels_take_what_is_written_down(tmp_path: Path) -> None:
    cases = ["add_rms_norm 4096 bfloat16", "rotate_and_write 32/8x128 bfloat16", "attention 32/8x128 bfloat16"]
    run = subprocess.run(
        [sys.executable, "-m", "kvasir_kernels.compile_check", "--check", *cases],
        cwd=ROOT, env=os.environ | {"TRITON_CACHE_DIR": str(tmp_path)}, capture_output=True, text=True, timeout=170,
    )  # fmt: skip
    assert run.returncode == 0, run.stdout + run.stderr


def test_the_cpu_does_without_triton() -> None:
    code = (
        "import sys; sys.modules['triton'] = None\n"
        "import torch; from kvasir_kernels.dispatch import rms_norm, silu_mul\n"
        "rms_norm(torch.ones(2, 4), torch.ones(4), 1e-6); silu_mul(torch.ones(2, 4))\n"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert run.returncode == 0, run.stderr


@needs_triton
def test_steps_of_any_lengths_compile_each_attention_kernel_once(tmp_path: Path) -> None:
    code = """
import torch
from kvasir_kernels.compile_check import GPUS, compile_case
from kvasir_kernels.paged_attention import decode_kernel, extend_kernel, kernel
from kvasir_kernels.paged_cache import AttentionBatch, LayerCache

def steps():
    cache = LayerCache(*torch.zeros(2, 4, 16, 2, 64, dtype=torch.float16))
    for new, contexts, num_pages in [((1, 20), (2000, 40), 128), ((1, 1, 7), (900, 5, 70), 57), ((16,), (16,), 1)]:
        tables = torch.zeros(len(new), num_pages, dtype=torch.int64)
        query = torch.zeros(sum(new), 4, 64, dtype=torch.float16)
        kernel.paged_attention(query, cache, AttentionBatch(new, contexts, tables, new.count(1)), 0.1, None)

compile_case(steps, GPUS["sm_90"])
functions = (decode_kernel.decode, decode_kernel.merge, extend_kernel.extend)
print([sum(len(cache[0]) for cache in function.device_caches.values()) for function in functions])
"""
    run = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT, env=os.environ | {"TRITON_CACHE_DIR": str(tmp_path)}, capture_output=True, text=True, timeout=170,
    )  # fmt: skip
    assert run.stdout.strip() == "[1, 1, 1]", run.stderr
