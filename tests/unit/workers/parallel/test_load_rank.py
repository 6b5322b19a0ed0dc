"""What a rank will take, before it takes it."""

import dataclasses
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from kvasir_protocol.config import EngineConfig, ModelConfig
from kvasir_protocol.errors import ConfigError, OutOfMemory
from kvasir_workers.parallel.load_rank import plan_rank
from kvasir_workers.parallel.mesh import GangShape, RankPlace
from tests.checkpoints import make_checkpoint
from tests.gangs import DEMO_MODEL, ThreadGang, gang_config

MODEL = ModelConfig(path=str(DEMO_MODEL), served_name="m")
ENGINE = EngineConfig(device="cpu", kv_cache_bytes=6 * 2**20)


@pytest.mark.parametrize(("tp", "pp"), [(1, 1), (2, 1), (1, 3), (4, 2)])
def test_gang_has_as_many_pages_as_one_rank_would(tp: int, pp: int) -> None:
    """6 layers of 4 heads of 32, 16 tokens a page, keys and values: 98,304 bytes in float32."""
    shape = GangShape(tensor_parallel_size=tp, pipeline_parallel_size=pp)
    plans = [plan_rank(MODEL, ENGINE, RankPlace(shape, rank)) for rank in range(shape.num_ranks)]
    assert {plan.memory.num_pages for plan in plans} == {64}


def test_copies_of_heads_count() -> None:
    plan = plan_rank(MODEL, ENGINE, RankPlace(GangShape(tensor_parallel_size=8), 5))
    assert plan.memory.num_pages == 32


def test_all_ranks_have_the_least_number_of_pages_that_any_has() -> None:
    shape = GangShape(pipeline_parallel_size=2)
    small, large = (gang_config(DEMO_MODEL, shape, number) for number in (10, 30))
    with ThreadGang(DEMO_MODEL, shape, large, followers_config=small) as gang:
        assert gang.loaded.pages.shape[2] == 10
        assert gang.loaded.limits.max_sequence_tokens == 40


def test_stage_tells_what_its_pages_are_of() -> None:
    shape = GangShape(tensor_parallel_size=2, pipeline_parallel_size=3)
    with ThreadGang(DEMO_MODEL, shape, gang_config(DEMO_MODEL, shape, 4)) as gang:
        assert gang.loaded.lead is not None
        stage = gang.loaded.lead.stage
        assert (stage.kv.layers, stage.kv.kv_heads) == (range(2), (0, 1))
        assert stage.pages.shape == (2, 2, 4, 4, 2, 32)


def test_rank_without_room_is_refused_with_the_numbers() -> None:
    with pytest.raises(OutOfMemory, match="do not fit"):
        plan_rank(
            MODEL, dataclasses.replace(ENGINE, kv_cache_bytes=2**60), RankPlace(GangShape(tensor_parallel_size=2), 1)
        )


def test_steps_that_do_not_fit_are_refused() -> None:
    engine = dataclasses.replace(ENGINE, max_num_batched_tokens=2**60)
    with pytest.raises(OutOfMemory, match="tensors of a full step"):
        plan_rank(MODEL, engine, RankPlace(GangShape(tensor_parallel_size=2), 1))


def test_integers_are_refused() -> None:
    model = dataclasses.replace(MODEL, quantization="int8")
    with pytest.raises(ConfigError, match="quantization int8 is not supported with several ranks"):
        plan_rank(model, ENGINE, RankPlace(GangShape(tensor_parallel_size=2), 0))


def test_tiers_are_refused() -> None:
    engine = dataclasses.replace(ENGINE, host_cache_bytes=2**20)
    with pytest.raises(ConfigError, match="host_cache_bytes is not supported with several ranks"):
        plan_rank(MODEL, engine, RankPlace(GangShape(tensor_parallel_size=2), 0))


def test_rank_stores_keys_by_the_scales_of_its_own_heads(tmp_path: Path) -> None:
    path, shape = make_checkpoint(tmp_path, "LlamaForCausalLM"), GangShape(tensor_parallel_size=2)
    scale = {"model.layers.1.self_attn.k_scale": torch.tensor([2.0, 3.0])}
    save_file(load_file(path / "model.safetensors") | scale, path / "model.safetensors")
    config = dataclasses.replace(gang_config(path, shape, 10), kv_cache_dtype="fp8")
    with ThreadGang(path, shape, config) as gang:
        found = [scales.key.tolist() for scales in gang.loaded.decoder.cache_scales]
    assert found == [[1.0], [2.0], [1.0]]
