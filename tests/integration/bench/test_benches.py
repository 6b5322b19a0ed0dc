"""Every bench runs to its end, at a size that measures nothing, and prints its table."""

import importlib
import sys
from pathlib import Path

import pytest

from kvasir.demo import demo_model_path

ROOT = Path(__file__).parents[3]

STUB = f"{sys.executable} -m kvasir.bench.stub_server {{port}}"

SMALL = {
    "continuous_batching": (["--requests", "4", "--batch", "2", "--rounds", "1", "--simulate"], "times as fast"),
    "cpu_path": (["--batches", "2", "--prompt", "3", "--steps", "2", "--rounds", "1"], "times of native's step"),
    "disaggregation": (
        [
            "--seconds",
            "2",
            "--warm-up",
            "0.5",
            "--rounds",
            "1",
            "--streams",
            "2",
            "--burst",
            "1",
            "--beat",
            "0.2",
            "--long",
            "20",
            "--chunk",
            "64",
        ],
        "conditional, of separate:",
    ),
    "fairness": (["--rounds", "1", "--steps", "30", "--simulate"], "over an idle engine"),
    "front_door": (
        ["--models", str(demo_model_path()), "--server", STUB, "--threads", "1", "--concurrency", "1", "--rounds", "1"],
        "served / bare",
    ),
    "handover": (
        ["--shape", "demo", "--mbytes", "2", "--rounds", "1", "--prompt", "40", "--chunk", "16"],
        "of the bytes left while the prompt was computed",
    ),
    "kv_tiers": (["--texts", "3", "--tokens", "40", "--rounds", "2"], "host memory and disk"),
    "kv_memory_waste": (["--requests", "6", "--places", "2"], "pages of 16"),
    "multi_turn_reuse": (["--chats", "1", "--turns", "2", "--answer", "2", "--rounds", "1"], "whole pages"),
    "structured_output": (["--batch", "2", "--tokens", "4", "--rounds", "2"], "loss of CPU time"),
    "shared_pages": (["--answer", "3", "--widths", "2"], "2 beams"),
    "wire_overhead": (["--batches", "2", "--steps", "5", "--rounds", "1"], "difference"),
}


@pytest.mark.parametrize("name", SMALL)
def test_bench_prints_its_table(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    arguments, expected = SMALL[name]
    importlib.import_module(f"bench.{name}").main(arguments)
    assert expected in capsys.readouterr().out


@pytest.mark.parametrize("name", ["continuous_batching", "fairness"])
def test_bench_with_a_simulated_step_also_runs_the_demo_model(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    arguments, expected = SMALL[name]
    importlib.import_module(f"bench.{name}").main([item for item in arguments if item != "--simulate"])
    assert expected in capsys.readouterr().out


def test_every_bench_is_run_here() -> None:
    benches = {path.stem for path in (ROOT / "bench").glob("*.py") if "__main__" in path.read_text()}
    assert benches == set(SMALL)


@pytest.mark.parametrize("name", SMALL)
def test_bench_says_what_it_measures(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    bench = importlib.import_module(f"bench.{name}")
    with pytest.raises(SystemExit):
        bench.main(["--help"])
    assert f"python -m bench.{name}" in capsys.readouterr().out
