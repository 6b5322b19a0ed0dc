"""What is said before anything is loaded, against what loading it takes."""

import json
from pathlib import Path

import pytest
import torch

from kvasir.cli.main import build_parser, main
from kvasir.cli.options import make_config
from kvasir.cli.plan import PROMPTS, ReplicaPlan, plan_replica, predict
from kvasir.demo import DEMO_MODEL_NAME, demo_model_path
from kvasir_protocol.config import EngineConfig, ModelConfig
from kvasir_workers.load import load_model
from kvasir_workers.model.loader import load_decoder, load_spec
from kvasir_workers.quantization.scheme import SCHEMES
from kvasir_workers.roofline import DeviceRates, ModelWork

CPU = torch.device("cpu")
RATES = DeviceRates(bytes_per_s=1e9, flops_per_s=1e9)


def planned(*flags: str) -> ReplicaPlan:
    config = make_config(build_parser().parse_args(["plan", "--device", "cpu", *flags]), default_is_mixed=False)
    return plan_replica(config, load_spec(demo_model_path()), CPU)


def test_weights_and_pages_are_those_that_loading_makes() -> None:
    plan = planned("--kv-cache-memory-bytes", "32MiB")
    loaded = load_model(
        ModelConfig(path=str(demo_model_path()), served_name="m"), EngineConfig(device="cpu", kv_cache_bytes=2**25)
    )
    assert plan.num_pages * plan.page_bytes == loaded.pages.nbytes
    decoder = load_decoder(demo_model_path(), torch.float32, CPU)
    assert plan.weight_bytes == sum(weight.nbytes for weight in decoder.parameters())
    assert plan.max_sequence_tokens == loaded.limits.max_sequence_tokens


@pytest.mark.parametrize(("name", "share"), [("int8", 0.26), ("int4", 0.2), ("fp8", 0.4), ("fp8-block", 0.4)])
def test_quantized_weights_take_less_and_are_read_sooner(name: str, share: float) -> None:
    plain, quantized = planned(), planned("--quantization", name)
    assert quantized.weight_bytes < share * plain.weight_bytes
    spec = load_spec(demo_model_path())
    works = [ModelWork.of(spec, torch.float32, scheme) for scheme in (None, SCHEMES[name])]
    assert works[1].read_bytes == pytest.approx(quantized.weight_bytes, rel=0.01)
    assert works[1].read_bytes < share * works[0].read_bytes


def test_float8_cache_has_four_times_the_pages_of_float32() -> None:
    wide, narrow = (planned("--kv-cache-memory-bytes", "6MiB", "--kv-cache-dtype", dtype) for dtype in ("auto", "fp8"))
    assert (narrow.num_pages, 4 * narrow.page_bytes) == (4 * wide.num_pages, wide.page_bytes)


def test_sum_has_every_part() -> None:
    small, large = planned("--kv-cache-memory-bytes", "32MiB"), planned("--kv-cache-memory-bytes", "64MiB")
    planned_bytes = [plan.total_bytes - plan.process_bytes - plan.ray_bytes for plan in (small, large)]
    assert planned_bytes[1] - planned_bytes[0] == pytest.approx(2**25, abs=small.page_bytes)
    assert planned_bytes[0] == small.weight_bytes + small.num_pages * small.page_bytes + small.step_bytes


def test_wider_steps_take_more_memory() -> None:
    assert planned("--max-num-batched-tokens", "4096").step_bytes > planned().step_bytes


def test_only_what_fits_into_the_context_and_the_pages_is_predicted() -> None:
    replica = planned("--kv-cache-memory-bytes", "8MiB", "--max-model-len", "600")
    speed = predict(ModelWork.of(load_spec(demo_model_path()), torch.float32), RATES, replica)
    assert list(speed.ttft_s) == [PROMPTS[0], 599]
    assert list(speed.tokens_per_s) == [1]
    assert replica.num_sequences(600) == replica.num_pages // 38


def test_command_tells_it_as_a_table_and_as_json(capsys: pytest.CaptureFixture[str]) -> None:
    flags = ["plan", "--device", "cpu", "--kv-cache-memory-bytes", "32MiB"]
    assert main(flags) == 0
    text = capsys.readouterr().out
    assert "one replica" in text
    assert "tokens/s at best" in text
    assert main([*flags, "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["replica"]["num_pages"] == planned("--kv-cache-memory-bytes", "32MiB").num_pages


def test_each_of_several_models_is_planned_with_its_own_pools(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "two.yaml"
    file.write_text(
        f"""\
models: [{{path: {demo_model_path()}, served_name: small, max_model_len: 64}}]
engine: {{device: cpu, kv_cache_bytes: 32MiB}}
pools: [{{role: mixed}}, {{role: mixed, model: small, replicas: 3}}]
"""
    )
    assert main(["plan", "--config", str(file)]) == 0
    first, _, second = capsys.readouterr().out.partition("small: ")
    assert (first.count("one replica"), "replicas " in first) == (1, False)
    assert "3 replicas " in second
    assert main(["plan", "--config", str(file), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)["models"]
    assert told["small"]["replica"]["max_sequence_tokens"] == 64
    assert told[DEMO_MODEL_NAME]["replica"]["max_sequence_tokens"] > 64


def test_what_cannot_fit_is_refused_with_what_to_change(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", "--device", "cpu", "--kv-cache-memory-bytes", "90TiB"]) == 1
    assert "lower max_model_len" in capsys.readouterr().err
