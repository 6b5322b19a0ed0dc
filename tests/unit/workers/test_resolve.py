"""What "auto" stands for. Dtypes, caches and quantization have their tests where they are read."""

from dataclasses import replace

import torch

from bench.cpu_path import read_shape
from kvasir.demo import demo_model_path
from kvasir_protocol.config import EngineConfig, ModelConfig
from kvasir_workers.memory import step_bytes
from kvasir_workers.model.loader import load_spec
from kvasir_workers.resolve import StepTokens, planned_footprint, resolve_step_tokens

CPU, CUDA = torch.device("cpu"), torch.device("cuda")
SMALL, LARGE = read_shape("demo"), read_shape("qwen3-0.6b")


def step_tokens(spec=SMALL, device=CPU, **settings):
    config = EngineConfig(**{"device": device.type, "max_num_seqs": 32, **settings})
    return resolve_step_tokens(config, spec, torch.bfloat16, device)


def without_spare(*arguments, **settings):
    found = step_tokens(*arguments, **settings)
    assert found.spare == (found.most - found.spare) // 8
    return found.most - found.spare


def test_small_models_take_more_tokens_at_once_on_cpus():
    assert without_spare() == 1024
    assert without_spare(LARGE) == 512


def test_large_models_take_fewer_so_that_no_step_takes_for_ever():
    of_7_billions = replace(LARGE, num_layers=LARGE.num_layers * 15)
    assert without_spare(of_7_billions) == 32
    assert without_spare(replace(LARGE, num_layers=LARGE.num_layers * 2)) == 256


def test_any_sequence_may_decode_in_every_step():
    assert without_spare(LARGE, max_num_seqs=600) == 600


def test_what_was_set_stands():
    assert step_tokens(max_num_batched_tokens=100) == StepTokens(100)


def test_a_gpu_takes_as_many_for_every_model():
    assert step_tokens(device=CUDA) == step_tokens(LARGE, CUDA) == StepTokens(2048)


def test_memory_is_planned_for_as_many_tokens_as_a_step_takes():
    model = ModelConfig(path=str(demo_model_path()), served_name="m")
    spec, config = load_spec(demo_model_path()), EngineConfig(max_num_seqs=32)
    planned = {device: planned_footprint(model, config, spec, device).step_bytes for device in (CPU, CUDA)}
    assert planned[CPU] == step_bytes(spec, torch.float32, 1024 + 128, 32)
    assert planned[CUDA] == step_bytes(spec, torch.float32, 2048, 32)


def test_a_model_without_layers_has_a_step_too():
    assert without_spare(replace(SMALL, num_layers=0)) == 1024
