"""The bench measures real steps of the engine, and shows what overlap hides."""

import json

import pytest

from kvasir.bench.step import NUM_WARM_UP_STEPS, StepBench
from kvasir.cli.main import main


def test_every_measured_step_decodes_all_sequences() -> None:
    bench = StepBench(num_steps=4, prompt_tokens=20, device_s=0.0)
    for overlap in (False, True):
        engine = bench._engine(3, overlap=overlap, device_s=0.0)
        for request in bench._requests(3, NUM_WARM_UP_STEPS + 5):
            engine.add(request)
        num_tokens = 0
        while engine.has_work:
            num_tokens += sum(len(output.token_ids) for output in engine.step())
            engine.audit()
        assert num_tokens == 3 * (NUM_WARM_UP_STEPS + 5)


def test_plain_step_takes_at_least_as_long_as_its_device() -> None:
    cost = StepBench(num_steps=5, prompt_tokens=20, device_s=0.002).measure(2)
    assert (cost.num_sequences, cost.device_us) == (2, pytest.approx(2000))
    assert cost.plain_us > cost.device_us
    assert 0 < cost.host_us <= cost.host_p90_us


def test_command_prints_its_figures(capsys: pytest.CaptureFixture[str]) -> None:
    sizes = ["--sequences", "1", "3", "--steps", "3", "--prompt-tokens", "5", "--device-ms", "0"]
    assert main(["bench", "step", *sizes, "--json"]) == 0
    assert [cost["num_sequences"] for cost in json.loads(capsys.readouterr().out)] == [1, 3]
    assert main(["bench", "step", *sizes]) == 0
    assert "overlapped us" in capsys.readouterr().out


def test_sizes_that_cannot_be_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "step", "--sequences", "0"]) == 1
    assert "--sequences" in capsys.readouterr().err
