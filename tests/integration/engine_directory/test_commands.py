"""Engine directories where a person gives them: the command line and `LLM`."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from kvasir import LLM, SamplingParams
from kvasir.cli.main import build_parser, main
from kvasir.cli.options import make_config
from kvasir.cli.tune import wanted
from kvasir_protocol.config import ModelConfig
from kvasir_protocol.errors import ConfigError
from kvasir_workers.parallel.mesh import GangShape
from tests.integration.engine.conftest import DEMO_MODEL

QUESTIONS = ["Who was Kvasir?", "What is a KV cache?"]
GREEDY = SamplingParams(temperature=0, max_tokens=12)


@pytest.fixture(scope="module")
def two_ranks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("built") / "two"
    assert main(["build", str(DEMO_MODEL), "-o", str(directory), "--tensor-parallel-size", "2"]) == 0
    return directory


@pytest.fixture(scope="module")
def int8(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("built") / "int8"
    assert main(["build", str(DEMO_MODEL), "-o", str(directory), "--quantization", "int8"]) == 0
    return directory


def texts(model: Path, **settings: object) -> list[str]:
    with LLM(model, device="cpu", kv_cache_memory_bytes=2**22, **settings) as llm:  # type: ignore[arg-type]
        return [answer.outputs[0].text for answer in llm.generate(QUESTIONS, GREEDY, use_tqdm=False)]


def test_llm_takes_a_directory_of_two_ranks_and_says_the_same(two_ranks: Path) -> None:
    assert texts(two_ranks) == texts(DEMO_MODEL)


def test_llm_refuses_what_the_directory_was_not_built_for(int8: Path) -> None:
    with pytest.raises(ConfigError, match=r"demo_model -o DIR --dtype float32 .*--tensor-parallel-size 2"):
        texts(int8, tensor_parallel_size=2)


def test_serve_takes_the_ranks_that_a_directory_was_built_for(two_ranks: Path) -> None:
    config = make_config(build_parser().parse_args(["serve", str(two_ranks)]), default_is_mixed=False)
    assert [(pool.role, pool.tensor_parallel_size) for pool in config.pools] == [("mixed", 2)]


def test_serve_refuses_other_ranks_before_anything_is_started(
    two_ranks: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["serve", str(two_ranks), "--tensor-parallel-size", "4"]) == 1
    assert "was built for tp=2 pp=1 in float32, and tp=4 pp=1 in float32 is asked for" in capsys.readouterr().err


def test_plan_knows_what_a_directory_takes(int8: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def planned(*arguments: str) -> dict[str, int]:
        capsys.readouterr()
        assert main(["plan", *arguments, "--device", "cpu", "--json"]) == 0
        replica: dict[str, int] = json.loads(capsys.readouterr().out)["replica"]
        return replica

    built, quantized = planned(str(int8)), planned(str(DEMO_MODEL), "--quantization", "int8")
    assert built["weight_bytes"] == quantized["weight_bytes"]


def test_plan_of_a_directory_that_was_cut_off_says_how_it_is_built_again(
    int8: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    copy = Path(shutil.copytree(int8, tmp_path / "copy"))
    weights = copy / "weights" / "rank-0.safetensors"
    os.truncate(weights, weights.stat().st_size - 1)
    assert main(["plan", str(copy), "--device", "cpu"]) == 1
    assert f"build the directory again: `kvasir build {DEMO_MODEL} -o {copy}" in capsys.readouterr().err


def test_a_directory_is_read_through(int8: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["build", str(int8), "--check"]) == 0
    assert main(["build", str(DEMO_MODEL), "--check"]) == 1
    assert "is no engine directory" in capsys.readouterr().err


def test_a_build_without_a_place_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["build", str(DEMO_MODEL)]) == 1
    assert "kvasir build needs -o DIR" in capsys.readouterr().err


def test_tuning_is_for_what_a_directory_was_built_for(two_ranks: Path, int8: Path) -> None:
    def found(directory: Path, *flags: str) -> tuple[ModelConfig, GangShape]:
        return wanted(build_parser().parse_args(["tune", str(directory), *flags]))

    assert found(two_ranks)[1] == GangShape(tensor_parallel_size=2)
    assert found(int8)[0].quantization == "int8"
    assert found(DEMO_MODEL, "--tensor-parallel-size", "2")[1] == GangShape(tensor_parallel_size=2)
    with pytest.raises(ConfigError, match="tp=4 pp=1 in float32 is asked for"):
        found(two_ranks, "--tensor-parallel-size", "4")


def test_tuning_without_a_gpu_says_so() -> None:
    run = subprocess.run(
        [sys.executable, "-c", f"from kvasir.cli.main import main; main(['tune', {str(DEMO_MODEL)!r}])"],
        env={"CUDA_VISIBLE_DEVICES": "", "PATH": "", "PYTHONPATH": ":".join(sys.path)},
        capture_output=True, text=True, timeout=100,
    )  # fmt: skip
    assert run.stderr.startswith("kvasir: error: kvasir tune measures kernels on a GPU, and torch finds none")
