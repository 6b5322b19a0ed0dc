"""Keys and values of 8 bits through a whole engine: more pages, and the same tokens wherever a page has been."""

import random
from pathlib import Path

import pytest
import torch

from kvasir_protocol.config import EngineConfig, KvCacheDType, ModelConfig
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

DTYPES: dict[KvCacheDType, torch.dtype] = {"fp8": torch.float8_e4m3fn, "int8": torch.int8}
PAGE_BYTES = {name: page_bytes(load_spec(DEMO_MODEL), PAGE_SIZE, dtype) for name, dtype in DTYPES.items()}
MODEL = ModelConfig(path=str(DEMO_MODEL), served_name="m", dtype="float32")


def config_of(dtype: KvCacheDType, num_pages: int, **settings: object) -> EngineConfig:
    return EngineConfig(
        device="cpu",
        page_size=PAGE_SIZE,
        kv_cache_dtype=dtype,
        kv_cache_bytes=num_pages * PAGE_BYTES[dtype],
        max_num_batched_tokens=256,
        **settings,  # type: ignore[arg-type]
    )


def load(config: EngineConfig) -> LoadedModel:
    """Pages, or their scales, are NaN until they are written."""
    loaded = load_model(MODEL, config)
    if loaded.pages.dtype == torch.int8:
        for scales in loaded.decoder.cache_scales:
            scales.key.fill_(torch.nan)
            scales.value.fill_(torch.nan)
    else:
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


@pytest.fixture(scope="module", params=DTYPES)
def dtype(request: pytest.FixtureRequest) -> KvCacheDType:
    name: KvCacheDType = request.param
    return name


@pytest.fixture(scope="module")
def expected(dtype: KvCacheDType) -> list[list[int]]:
    config = config_of(dtype, 100, enable_prefix_caching=False)
    return answers(build_engine(load(config), config))


def test_as_many_pages_as_were_paid_for(dtype: KvCacheDType) -> None:
    loaded = load(config_of(dtype, 100))
    scales = [scale for layer in loaded.decoder.cache_scales for scale in (layer.key, layer.value)]
    assert loaded.pages.shape[2] == 100
    assert loaded.pages.nbytes + sum(scale.nbytes for scale in scales if scale.dim() > 1) == 100 * PAGE_BYTES[dtype]
    assert loaded.layout.dtype == str(DTYPES[dtype]).removeprefix("torch.")


def test_one_call_for_the_whole_decoder_is_not_taken(dtype: KvCacheDType) -> None:
    assert load(config_of(dtype, 20)).decoder.fused is None


@pytest.mark.parametrize("at_once", [False, True], ids=["one by one", "together"])
def test_tokens_are_the_same_from_cached_pages(dtype: KvCacheDType, expected: list[list[int]], at_once: bool) -> None:
    config = config_of(dtype, 200)
    assert answers(build_engine(load(config), config), at_once=at_once) == expected


def test_tokens_are_the_same_after_preemption(dtype: KvCacheDType, expected: list[list[int]]) -> None:
    config = config_of(dtype, 60)
    engine = build_engine(load(config), config)
    assert answers(engine, at_once=True) == expected
    assert engine.counters().num_preemptions > 0


@pytest.mark.parametrize("shape", [GangShape(tensor_parallel_size=2), GangShape(pipeline_parallel_size=2)], ids=str)
def test_tokens_are_the_same_from_several_ranks(
    dtype: KvCacheDType, expected: list[list[int]], shape: GangShape
) -> None:
    with ThreadGang(DEMO_MODEL, shape, config_of(dtype, 100)) as gang:
        assert gang.loaded.pages.dtype == DTYPES[dtype]
        assert answers(gang.engine()) == expected


@pytest.mark.parametrize("dtype", ["fp8"], indirect=True)
def test_tokens_are_the_same_from_host_memory_and_disk(
    dtype: KvCacheDType, expected: list[list[int]], tmp_path: Path
) -> None:
    room = {"host_cache_bytes": 30 * PAGE_BYTES[dtype], "disk_cache_bytes": 200 * PAGE_BYTES[dtype]}
    config = config_of(dtype, 22, disk_cache_path=str(tmp_path), **room)
    loaded = load(config)
    opened = open_tiers(loaded.pages, config)
    assert opened is not None
    never_compute(opened)
    engine = build_engine(loaded, config, opened=opened)
    assert [answers(engine) for _ in range(2)] == [expected, expected]
    assert opened.tiers.log.counts["host_restored_pages"] > 0
    opened.tiers.close()
