"""What runs on a machine with a GPU imports nothing that isn't there: `scripts/gpu-test` and `python -m bench.gpu`."""

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

MISSING = (
    "cryptography",
    "fastapi",
    "httpx",
    "llguidance",
    "psutil",
    "pydantic",
    "ray",
    "rich",
    "uvicorn",
    "uvloop",
    "zmq",
)
"""What serving needs, and neither torch, Triton, transformers, safetensors, msgpack nor pytest brings along."""

IMPORT = """
import importlib.util, sys
from importlib.machinery import PathFinder

class Without(PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        return None if name.partition(".")[0] in {missing} else super().find_spec(name, path, target)

sys.meta_path = [Without if finder is PathFinder else finder for finder in sys.meta_path]
for file in {files}:
    spec = importlib.util.spec_from_file_location("tried", file)
    spec.loader.exec_module(importlib.util.module_from_spec(spec))
"""


@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="Triton is not installed")
@pytest.mark.parametrize("folder", ["tests/gpu", "bench/gpu"])
def test_a_gpu_needs_nothing_that_only_serving_needs(folder):
    files = sorted((ROOT / folder).glob("*.py"))
    assert len(files) > 2
    code = IMPORT.format(missing=set(MISSING), files=[str(file) for file in files])
    run = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert run.returncode == 0, run.stderr
