"""The GPU benchmark on a CPU, in Triton's interpreter: every path runs, and what it writes can be read."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from bench.gpu.figures import OURS, Ceilings, Figure, rows

ROOT = Path(__file__).parents[3]


@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="Triton is not installed")
def test_every_part_is_measured_and_written_down(tmp_path: Path) -> None:
    run = subprocess.run(
        [sys.executable, "-m", "bench.gpu", "--tiny", "--out", str(tmp_path)],
        cwd=ROOT, env=os.environ | {"TRITON_INTERPRET": "1"}, capture_output=True, text=True, timeout=170,
    )  # fmt: skip
    assert run.returncode == 0, run.stderr
    written = json.loads((tmp_path / "gpu.json").read_text())
    parts = {figure["part"] for figure in written["figures"]}
    assert parts == {
        "add, norm", "add, norm, to FP8", "silu, mul", "silu, mul, FP8 row", "silu, mul, FP8 block", "rotate, write",
        "sum of one rank", "sample", "decode step", "decode step, FP8", "decode step, FP8 and KV", "FP8 product, row",
        "engine step", "engine step, FP8",
        "FP8 product, block", "decode attention", "decode, FP8 cache", "prefill attention",
    }  # fmt: skip
    assert all(figure["seconds"] for figure in written["figures"] if figure["way"] == OURS)
    assert run.stdout.splitlines()[-1].startswith("prefill attention")


def test_nothing_is_begun_after_the_last_minute(tmp_path: Path) -> None:
    run = subprocess.run(
        [sys.executable, "-m", "bench.gpu", "--tiny", "--parts", "models", "--minutes", "0", "--out", str(tmp_path)],
        cwd=ROOT, env=os.environ | {"TRITON_INTERPRET": "1"}, capture_output=True, text=True, timeout=170,
    )  # fmt: skip
    assert run.returncode == 0, run.stderr
    assert "left out: no time left" in run.stdout


def test_a_share_is_of_the_ceiling_that_binds() -> None:
    ceilings = Ceilings(copy=1e9, bfloat16=1e12, float8=2e12)
    bound_by_bytes = Figure("norm", "a", OURS, seconds=2e-3, num_bytes=1e6, num_operations=1e6)
    bound_by_products = Figure("FP8 product", "b", OURS, seconds=4e-3, num_bytes=1.0, num_operations=4e9)
    torchs = Figure("FP8 product", "b", "torch", seconds=2e-3)
    lines = rows([bound_by_bytes, bound_by_products, torchs], ceilings)
    assert lines[1].split() == ["norm", "a", "2000.0", "50", "-"]
    assert lines[2].split() == ["FP8", "product", "b", "4000.0", "50", "torch", "0.50"]
