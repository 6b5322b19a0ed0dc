"""The kernels in an engine directory: compiled for a GPU that is not here, found again, refused where they misfit."""

import importlib.util
import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from functools import partial
from itertools import product
from pathlib import Path

import pytest
import torch

from kvasir.cli.main import main
from kvasir_kernels.native.build import BuildError, built_library, install_library
from kvasir_protocol.errors import CheckpointError
from kvasir_workers.engine_directory.kernels import bring_kernels
from kvasir_workers.engine_directory.manifest import Compiled, Manifest, read_manifest, write_manifest
from kvasir_workers.runner.decode_graphs import graph_sizes
from tests.checkpoints import make_checkpoint
from tests.integration.engine.conftest import DEMO_MODEL

ROOT = Path(__file__).parents[3]
CPU, CUDA = torch.device("cpu"), torch.device("cuda")

needs_triton = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="Triton is not installed")

STEP = """
import sys
from pathlib import Path
import triton
from kvasir_kernels.compile_model import ModelShape, compile_model
from kvasir_kernels.prebuilt import use_prebuilt

use_prebuilt(Path(sys.argv[1]))
num_found = 0

def count(**seen):
    global num_found
    num_found += seen["cache_hit"]
    if not seen["cache_hit"]:
        print(num_found, "and then", seen["src"].name, "is not there")
        sys.exit()

triton.knobs.compilation.listener = count
compile_model(ModelShape.from_json(sys.argv[2]), sys.argv[3])
print(num_found)
"""

SHAPE = {
    "dtype": "bfloat16", "stored": "bfloat16", "hidden_size": 64, "intermediate_size": 96, "num_layers": 3,
    "num_heads": 4, "num_kv_heads": 2, "head_dim": 16, "vocab_size": 256, "page_size": 16, "windows": [None] * 3,
    "has_head_norms": False, "graph_rows": graph_sizes(256), "max_pages": 32, "matrices": [],
}  # fmt: skip
"""Of the fixture's checkpoint, with default settings."""


@pytest.fixture(scope="module")
def for_hopper(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("built")
    source = make_checkpoint(folder / "checkpoint", "LlamaForCausalLM")
    (source / "tokenizer.json").write_text("{}")
    flags = ["--dtype", "bfloat16", "--target", "sm_90"]
    assert main(["build", str(source), "-o", str(folder / "engine"), *flags]) == 0
    return folder / "engine"


def manifest_of(directory: Path) -> Manifest:
    manifest = read_manifest(directory)
    assert manifest is not None
    return manifest


def step(directory: Path, target: str, cache: Path) -> str:
    """How many of a step's kernels were found, up to the first that was not."""
    environment = os.environ | {"TRITON_CACHE_DIR": str(cache), "TRITON_STORE_BINARY_ONLY": "0"}
    run = subprocess.run(
        [sys.executable, "-c", STEP, str(directory / "kernels"), json.dumps(SHAPE), target],
        cwd=ROOT, env=environment, capture_output=True, text=True, timeout=170,
    )  # fmt: skip
    assert run.returncode == 0, run.stderr
    return run.stdout.strip()


@needs_triton
def test_a_step_finds_all_kernels_wherever_the_directory_is_now(for_hopper: Path, tmp_path: Path) -> None:
    moved = Path(shutil.copytree(for_hopper, tmp_path / "moved"))
    assert int(step(moved, "sm_90", tmp_path / "cache")) >= 9


@needs_triton
def test_each_window_of_a_model_has_its_own_cut_for_each_size_of_a_graph() -> None:
    from kvasir_kernels import compile_calls as calls
    from kvasir_kernels.compile_model import ModelShape, cases_of

    shape = ModelShape.from_json(json.dumps(SHAPE | {"windows": [None, 64, 32, 64], "graph_rows": [1, 2]}))
    cases = [case for case in cases_of(shape) if isinstance(case, partial) and case.func is calls.decodes]
    found = [(case.args[0], case.args[4]) for case in cases]
    assert sorted(found, key=str) == sorted(product((1, 2), (None, 64, 32)), key=str)


@needs_triton
def test_kernels_for_another_gpu_are_not_found(for_hopper: Path, tmp_path: Path) -> None:
    found = step(for_hopper, "sm_80", tmp_path / "cache")
    assert found.startswith("0 and then ")
    assert found.endswith(" is not there")


@needs_triton
def test_the_manifest_says_what_they_are_for(for_hopper: Path) -> None:
    import triton

    assert manifest_of(for_hopper).compiled == Compiled(target="sm_90", triton=triton.__version__)


@needs_triton
@pytest.mark.parametrize("changes", [{"target": "sm_100"}, {"triton": "1.0"}])
def test_a_gpu_refuses_what_was_compiled_for_another(for_hopper: Path, tmp_path: Path, changes: dict[str, str]) -> None:
    copy = Path(shutil.copytree(for_hopper, tmp_path / "copy"))
    manifest = manifest_of(copy)
    assert manifest.compiled is not None
    write_manifest(copy, replace(manifest, compiled=replace(manifest.compiled, **changes)))
    with pytest.raises(CheckpointError, match=rf"has kernels for .*{next(iter(changes.values()))}.*build it anew here"):
        bring_kernels(copy, CUDA)


@needs_triton
def test_a_cpu_takes_the_weights_of_a_directory_for_a_gpu(for_hopper: Path) -> None:
    bring_kernels(for_hopper, CPU)


@needs_triton
@pytest.mark.parametrize("target", ["sm90", "h100", ""])
def test_an_unknown_gpu_is_refused_and_leaves_nothing(
    target: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["build", str(DEMO_MODEL), "-o", str(tmp_path / "engine"), "--target", target or "-"]) == 1
    assert "is no GPU's name; there are sm_80, sm_90, sm_100, gfx942" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def library() -> Path:
    try:
        return built_library()
    except BuildError as error:
        pytest.skip(f"no compiler: {error}")


def test_a_host_without_a_compiler_gets_the_cpus_library(
    library: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert main(["build", str(DEMO_MODEL), "-o", str(tmp_path / "engine"), "--target", "cpu"]) == 0
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "empty"))
    monkeypatch.setenv("PATH", "")
    bring_kernels(tmp_path / "engine", CPU)
    assert built_library().read_bytes() == library.read_bytes()


def test_kernels_are_used_whatever_groups_may_write_by_default(
    library: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = os.umask(0o002)
    try:
        assert main(["build", str(DEMO_MODEL), "-o", str(tmp_path / "engine"), "--target", "cpu"]) == 0
    finally:
        os.umask(before)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "empty"))
    bring_kernels(tmp_path / "engine", CPU)
    assert built_library().parent == tmp_path / "empty" / "kvasir" / "kernels"
    written = [path.stat().st_mode & 0o022 for path in (tmp_path / "engine" / "kernels").rglob("*")]
    assert written == [0]


def test_a_directory_from_a_host_without_a_compiler_starts_without_a_word(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "empty"))
    monkeypatch.setenv("PATH", "")
    before = os.umask(0o002)
    try:
        assert main(["build", str(DEMO_MODEL), "-o", str(tmp_path / "engine"), "--target", "cpu"]) == 0
    finally:
        os.umask(before)
    assert "the engine directory gets no CPU kernels: no C++ compiler found" in caplog.text
    caplog.clear()
    bring_kernels(tmp_path / "engine", CPU)
    assert caplog.text == ""


def test_a_library_of_other_sources_is_left_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "kernels").mkdir()
    (tmp_path / "kernels" / "0123456789abcdef01234567.so").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "empty"))
    install_library(tmp_path / "kernels")
    assert not (tmp_path / "empty").exists()


@pytest.mark.parametrize("of", ["folder", "program"])
def test_programs_that_anybody_may_write_are_not_used(
    of: str, library: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    assert main(["build", str(DEMO_MODEL), "-o", str(tmp_path / "engine"), "--target", "cpu"]) == 0
    folder = tmp_path / "engine" / "kernels"
    (folder if of == "folder" else folder / library.name).chmod(0o777)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "empty"))
    bring_kernels(tmp_path / "engine", CPU)
    assert "may be written by others" in caplog.text
    assert not (tmp_path / "empty").exists()
