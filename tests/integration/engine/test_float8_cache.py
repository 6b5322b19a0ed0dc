"""Keys and values in float8 through a whole engine: more pages, and the same tokens wherever a page has been."""

import random
from pathlib import Path

import pytest
import torch

from kvasir_protocol.config import EngineConfig, ModelConfig
from kvasir_protocol.ids import RequestId
from kvasir_protocol.request import GenerationRequest, SamplingParams
from kvasir_workers.engine import Engine
from kvasir_workers.kv.offload.open_tiers import open_tiers
from kvasir_workers.load import LoadedModel, build_engine, load_model
from kvasir_workers.memory import page_bytes
from kvasir_workers.model.loader import load_spec
from kvasir_workers.parallel.mesh import GangShape
from tests.gangs import DEMO_MODEL, ThreadGang
from tests.integration.engine.conftest import PAGE_SIZE, never_compute, run

FLOAT8 = torch.float8_e4m3fn
PAGE_BYTES = page_bytes(load_spec(DEMO_MODEL), PAGE_SIZE, FLOAT8)
MODEL = ModelConfig(path=str(DEMO_MODEL), served_name="m", dtype="float32")


def config_of(num_pages: int, **settings: object) -> EngineConfig:
    return EngineConfig(
        device="cpu",
        page_size=PAGE_SIZE,
        kv_cache_dtype="fp8",
        kv_cache_bytes=num_pages * PAGE_BYTES,
        max_num_batched_tokens=256,
        **settings,  # type: ignore[arg-type]
    )


def load(config: EngineConfig) -> LoadedModel:
    """Pages are NaN until they are written."""
    loaded = load_model(MODEL, config)
    loaded.pages.fill_(torch.nan)
    return loaded


def texts() -> list[tuple[int, ...]]:
    """Of which the second half is the first once more, a little longer."""
    draw = random.Random(3)
    heads = [tuple(draw.choices(range(3, 250), k=58)) for _ in range(4)]
    return heads + [(*head, *draw.choices(range(3, 250), k=5)) for head in heads]


def answers(engine: Engine, *, at_once: bool = False) -> list[list[int]]:
    requests = [
        GenerationRequest(
            request_id=RequestId(str(number)),
            prompt_token_ids=text,
            sampling=SamplingParams(temperature=0, max_tokens=12, seed=0, ignore_eos=True),
        )
        for number, text in enumerate(texts())
    ]
    if at_once:
        return [answer.token_ids for answer in run(engine, requests)]
    return [run(engine, [request])[0].token_ids for request in requests]


@pytest.fixture(scope="module")
def expected() -> list[list[int]]:
    config = config_of(100, enable_prefix_caching=False)
    return answers(build_engine(load(config), config))


def test_pages_take_a_quarter_of_float32s() -> None:
    loaded = load(config_of(100))
    assert loaded.pages.shape[2] == 100
    assert loaded.pages.dtype == FLOAT8
    assert loaded.layout.dtype == "float8_e4m3fn"
    assert page_bytes(load_spec(DEMO_MODEL), PAGE_SIZE, torch.float32) == 4 * PAGE_BYTES


def test_one_call_for_the_whole_decoder_is_not_taken() -> None:
    assert load(config_of(20)).decoder.fused is None


@pytest.mark.parametrize("at_once", [False, True], ids=["one by one", "together"])
def test_tokens_are_the_same_from_cached_pages(expected: list[list[int]], at_once: bool) -> None:
    config = config_of(200)
    assert answers(build_engine(load(config), config), at_once=at_once) == expected


def test_tokens_are_the_same_after_preemption(expected: list[list[int]]) -> None:
    config = config_of(60)
    assert answers(build_engine(load(config), config), at_once=True) == expected


def test_tokens_are_the_same_from_host_memory_and_disk(expected: list[list[int]], tmp_path: Path) -> None:
    config = config_of(
        22, host_cache_bytes=30 * PAGE_BYTES, disk_cache_bytes=200 * PAGE_BYTES, disk_cache_path=str(tmp_path)
    )
    loaded = load(config)
    opened = open_tiers(loaded.pages, config)
    assert opened is not None
    never_compute(opened)
    engine = build_engine(loaded, config, opened=opened)
    assert [answers(engine) for _ in range(2)] == [expected, expected]
    assert opened.tiers.log.counts["host_restored_pages"] > 0
    opened.tiers.close()


@pytest.mark.parametrize("shape", [GangShape(tensor_parallel_size=2), GangShape(pipeline_parallel_size=2)], ids=str)
def test_tokens_are_the_same_from_several_ranks(expected: list[list[int]], shape: GangShape) -> None:
    with ThreadGang(DEMO_MODEL, shape, config_of(100)) as gang:
        assert gang.loaded.pages.dtype == FLOAT8
        assert answers(gang.engine()) == expected
