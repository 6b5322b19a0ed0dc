"""Kernels of users, which entry points of an installed package name."""

import subprocess
import sys
from pathlib import Path

from tests.entry_points import install_kernels

PACKAGE = """
from kvasir_kernels.silu_mul.reference import silu_mul as reference

def silu_mul(gate_up):
    if gate_up.shape[0] > 1:
        return NotImplemented
    print("theirs")
    return reference(gate_up)
"""

CALL = """
import torch
from kvasir_kernels.dispatch import silu_mul
print(silu_mul(torch.ones(1, 4)).shape, silu_mul(torch.ones(2, 4)).shape)
"""

USES_GRAPHS = """
import torch
from kvasir.demo import demo_model_path
from kvasir_protocol.config import EngineConfig
from kvasir_workers.model.loader import load_spec
from kvasir_workers.resolve import uses_graphs
print(uses_graphs(load_spec(demo_model_path()), torch.device("cuda"), EngineConfig()))
"""


def _run(directory: Path, entry_points: str, code: str = CALL) -> subprocess.CompletedProcess[str]:
    (directory / "their_kernels.py").write_text(PACKAGE)
    install_kernels(directory, entry_points)
    setup = f"import logging, sys; logging.basicConfig(level=logging.INFO); sys.path.insert(0, {str(directory)!r})\n"
    return subprocess.run([sys.executable, "-c", setup + code], capture_output=True, text=True, timeout=60)


def test_a_users_kernel_computes_what_it_takes_and_ours_the_rest(tmp_path: Path) -> None:
    run = _run(tmp_path, "silu_mul = their_kernels:silu_mul")
    assert run.stdout.split("\n")[:2] == ["theirs", "torch.Size([1, 2]) torch.Size([2, 2])"], run.stderr
    assert "silu_mul is computed by their_kernels:silu_mul" in run.stderr


def test_a_kernel_for_no_operation_is_told_the_nearest(tmp_path: Path) -> None:
    run = _run(tmp_path, "silu_mull = their_kernels:silu_mul")
    assert 'entry point "silu_mull"' in run.stderr
    assert "did you mean silu_mul?" in run.stderr
    assert "theirs" not in run.stdout


def test_steps_are_not_recorded_where_a_users_kernel_must_be_asked_each_time(tmp_path: Path) -> None:
    for folder, entry_points in (("with", "silu_mul = their_kernels:silu_mul"), ("without", "")):
        (tmp_path / folder).mkdir()
        run = _run(tmp_path / folder, entry_points, USES_GRAPHS)
        assert run.stdout.split() == [str(not entry_points)], run.stderr
