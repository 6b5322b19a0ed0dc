"""Engines whose operations are Triton kernels: what these would be compiled for, and what they say."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.checkpoints import make_checkpoint
from tests.entry_points import install_kernels

ROOT = Path(__file__).parents[3]

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("triton") is None, reason="Triton is not installed: there is none for this platform"
)


def installed(entry_points: str, directory: Path) -> dict[str, str]:
    """An environment in which operations are asked of others first."""
    install_kernels(directory, entry_points)
    path = os.pathsep.join([str(directory), str(ROOT), os.environ.get("PYTHONPATH", "")])
    return os.environ | {"PYTHONPATH": path}


@pytest.mark.parametrize("scheme", ["", "fp8"])
def test_warm_up_meets_every_kernel_that_traffic_meets(tmp_path: Path, scheme: str) -> None:
    from tests.kernel_cases.launches import entry_points

    checkpoint = make_checkpoint(tmp_path / "model", "MistralForCausalLM", head_dim=64, sliding_window=40)
    run = subprocess.run(
        [sys.executable, "-m", "tests.kernel_cases.launches", str(checkpoint), scheme],
        cwd=ROOT, env=installed(entry_points(), tmp_path), capture_output=True, text=True, timeout=170,
    )  # fmt: skip
    assert run.returncode == 0, run.stderr
    outcome = json.loads(run.stdout)
    assert outcome["late"] == []
    assert outcome["num_warmed"] > 10


def test_engine_of_interpreted_kernels_says_what_the_references_say(tmp_path: Path) -> None:
    """From recorded steps with padding, overlapped, against eager ones."""
    from tests.kernel_cases.interpreted_engine import entry_points

    checkpoint = make_checkpoint(tmp_path / "model", "Qwen3ForCausalLM", num_hidden_layers=2)
    run = subprocess.run(
        [sys.executable, "-m", "tests.kernel_cases.interpreted_engine", str(checkpoint)],
        cwd=ROOT, env=installed(entry_points(), tmp_path) | {"TRITON_INTERPRET": "1"},
        capture_output=True, text=True, timeout=170,
    )  # fmt: skip
    assert run.returncode == 0, run.stderr
    outcome = json.loads(run.stdout)
    assert outcome["replayed"] == outcome["expected"]
    assert {len(token_ids) for token_ids in outcome["expected"].values()} == {5}
