"""Engines on the device: graphs, overlap, and that nothing waits or compiles where it must not."""

import random
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from kvasir_kernels.compile_watch import COMPILE_WATCH
from kvasir_protocol.config import DType, EngineConfig, ModelConfig
from kvasir_protocol.ids import RequestId
from kvasir_protocol.request import GenerationRequest, SamplingParams
from kvasir_workers.engine import Engine
from kvasir_workers.load import LoadedModel, build_engine, load_model
from kvasir_workers.ready import make_ready
from tests.checkpoints import make_checkpoint

pytestmark = pytest.mark.gpu

CONFIG = EngineConfig(device="cuda", max_num_seqs=20, max_num_batched_tokens=256, kv_cache_bytes=2**26)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_checkpoint(tmp_path_factory.mktemp("model"), "Qwen3ForCausalLM", head_dim=64)


def ready(checkpoint: Path, config: EngineConfig = CONFIG, dtype: DType = "float32") -> LoadedModel:
    return make_ready(load_model(ModelConfig(path=str(checkpoint), served_name="m", dtype=dtype), config), config)


@pytest.fixture(scope="module")
def loaded(checkpoint: Path) -> LoadedModel:
    return ready(checkpoint)


def request(index: int, **sampling: object) -> GenerationRequest:
    """Every fourth is greedy, some have penalties, limits, scores, or words that they must not say."""
    draw = random.Random(index)
    options: dict[str, object] = {
        "temperature": 0 if index % 4 == 0 else draw.choice([0.6, 1.0]),
        "max_tokens": draw.randint(1, 24),
        "seed": index,
        "ignore_eos": True,
        "top_k": draw.choice([0, 20]),
        "top_p": draw.choice([1.0, 0.9]),
        "repetition_penalty": draw.choice([1.0, 1.0, 1.3]),
        "frequency_penalty": draw.choice([0.0, 0.4]),
        "logprobs": draw.choice([None, 2]),
        "min_tokens": draw.choice([0, 1]),
        "bad_word_token_ids": draw.choice([(), (), ((7,), (8, 9))]),
        **sampling,
    }
    return GenerationRequest(
        request_id=RequestId(f"r{index}"),
        prompt_token_ids=tuple(draw.choices(range(3, 256), k=draw.randint(1, 90))),
        sampling=SamplingParams(**options),  # type: ignore[arg-type]
    )


def answers(engine: Engine, requests: list[GenerationRequest], arrivals_per_step: int = 3) -> dict[str, list[int]]:
    said: dict[str, list[int]] = {request.request_id: [] for request in requests}
    waiting = list(requests)
    while waiting or engine.has_work:
        for arrival in waiting[:arrivals_per_step]:
            engine.add(arrival)
        del waiting[:arrivals_per_step]
        for output in engine.step():
            said[output.request_id] += output.token_ids
        engine.audit()
    return said


REQUESTS = [request(index) for index in range(48)]


@pytest.fixture(scope="module")
def plain(checkpoint: Path) -> dict[str, list[int]]:
    """Operation by operation, one step at a time."""
    config = replace(CONFIG, enforce_eager=True, overlap=False)
    return answers(build_engine(ready(checkpoint, config), config), REQUESTS)


@pytest.mark.parametrize("arrivals_per_step", [1, 48])
def test_graph_replay_equals_eager(loaded: LoadedModel, plain: dict[str, list[int]], arrivals_per_step: int) -> None:
    assert loaded.graphs is not None
    engine = build_engine(loaded, replace(CONFIG, overlap=False))
    assert answers(engine, REQUESTS, arrivals_per_step) == plain


def test_overlap_equals_plain(loaded: LoadedModel, plain: dict[str, list[int]]) -> None:
    assert answers(build_engine(loaded, replace(CONFIG, overlap=True)), REQUESTS) == plain


def test_overlap_without_graphs_equals_plain(checkpoint: Path, plain: dict[str, list[int]]) -> None:
    config = replace(CONFIG, enforce_eager=True, overlap=True)
    assert answers(build_engine(ready(checkpoint, config), config), REQUESTS) == plain


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_nothing_is_compiled_after_ready(checkpoint: Path, dtype: DType) -> None:
    engine = build_engine(ready(checkpoint, dtype=dtype), CONFIG)
    num_late = len(COMPILE_WATCH.late)
    answers(engine, REQUESTS)
    assert COMPILE_WATCH.late[num_late:] == []


@contextmanager
def nobody_waits() -> Iterator[None]:
    """Whatever stops the host for the device, but waiting for an event, is an error."""
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("overlap", [False, True])
def test_replayed_step_waits_for_nothing_but_its_event(loaded: LoadedModel, overlap: bool) -> None:
    engine = build_engine(loaded, replace(CONFIG, overlap=overlap))
    for index in range(16):
        engine.add(request(index, max_tokens=12, bad_word_token_ids=()))
    for _ in range(4):  # prompts, and what comes once with new sequences
        engine.step()
    with nobody_waits():
        for _ in range(4):
            assert engine.step()
    while engine.has_work:
        engine.step()


def test_padding_writes_to_no_page(loaded: LoadedModel) -> None:
    """Of three sequences, in a graph of four; whatever the free pages hold stays."""
    engine = build_engine(loaded, replace(CONFIG, overlap=False, enable_prefix_caching=False))
    for index in range(3):
        engine.add(request(index, max_tokens=12))
    engine.step()
    free = torch.arange(loaded.pages.shape[2] - 8, loaded.pages.shape[2], device=loaded.pages.device)
    loaded.pages[:, :, free] = torch.nan
    while engine.has_work:
        engine.step()
    assert bool(loaded.pages[:, :, free].isnan().all())
