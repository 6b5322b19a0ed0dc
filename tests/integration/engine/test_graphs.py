"""Engines that replay recorded decode steps say what engines say that compute each step anew, token by token.

On a CPU a recording is computed again; what is given to it, its padding and its memory are those of a GPU.
"""

import random
from dataclasses import replace

import pytest
import torch

from kvasir_kernels.native.choice import without_native_kernels
from kvasir_protocol.config import EngineConfig, ModelConfig
from kvasir_protocol.ids import RequestId
from kvasir_protocol.request import GenerationRequest
from kvasir_workers.engine import Engine
from kvasir_workers.kv.manager import KvManager, Reuse
from kvasir_workers.load import LoadedModel, build_engine, load_model
from kvasir_workers.memory import page_bytes
from kvasir_workers.model.loader import load_spec
from kvasir_workers.ready import record_graphs
from kvasir_workers.runner.decode_graphs import graph_sizes
from kvasir_workers.runner.recorder import Rerun
from kvasir_workers.runner.stream_runner import StreamRunner
from tests.checkpoints import make_checkpoint
from tests.fakes.recorder import LoggedRecorder
from tests.integration.engine.conftest import FAMILIES, Answer, MakeModel, Model, run
from tests.integration.engine.test_batches import REQUESTS, assert_same
from tests.integration.engine.test_structured import House, mixed_requests, tokens_of, write_byte_level_tokenizer

CONFIG = EngineConfig(device="cpu", page_size=4, max_num_seqs=13, max_num_batched_tokens=64)


def load(model: Model, num_pages: int) -> LoadedModel:
    size = num_pages * page_bytes(load_spec(model.path), CONFIG.page_size, torch.float32)
    config = replace(CONFIG, kv_cache_bytes=size)
    loaded = load_model(ModelConfig(path=str(model.path), served_name="m", dtype="float32"), config)
    loaded.pages.fill_(torch.nan)
    return loaded


@pytest.fixture(scope="module", params=[*FAMILIES, "demo"])
def model(request: pytest.FixtureRequest, make_model: MakeModel) -> Model:
    return make_model(request.param)


@pytest.fixture(scope="module")
def eager(model: Model) -> list[Answer]:
    return run(build_engine(load(model, 512), replace(CONFIG, enable_prefix_caching=False)), REQUESTS)


@pytest.mark.parametrize("overlap", [False, True])
@pytest.mark.parametrize("arrivals_per_step", [1, 100])
def test_replayed_steps_give_the_tokens_of_eager_ones(
    model: Model, eager: list[Answer], overlap: bool, arrivals_per_step: int
) -> None:
    recorder = LoggedRecorder()
    loaded = record_graphs(load(model, 512), CONFIG, recorder)
    engine = build_engine(loaded, replace(CONFIG, overlap=overlap))
    answers = run(engine, REQUESTS, arrivals_per_step=arrivals_per_step)
    assert_same(answers, eager)
    assert len(recorder.replayed) > engine.counters().num_steps // 4
    assert len(recorder.recorded) == len(graph_sizes(CONFIG.max_num_seqs)), "nothing is recorded while requests wait"


@pytest.mark.parametrize("overlap", [False, True])
def test_preempted_sequences_find_their_way_back(model: Model, eager: list[Answer], overlap: bool) -> None:
    loaded = record_graphs(load(model, 20), CONFIG, Rerun())
    engine = build_engine(loaded, replace(CONFIG, overlap=overlap))
    assert_same(run(engine, REQUESTS), eager)
    assert engine.counters().num_preemptions > 0


@pytest.mark.parametrize("overlap", [False, True])
def test_stream_without_graphs_says_the_same(model: Model, eager: list[Answer], overlap: bool) -> None:
    """As with enforce_eager."""
    loaded, config = load(model, 512), replace(CONFIG, overlap=overlap)
    limits, kv = loaded.limits, KvManager(512, CONFIG.page_size, Reuse(enabled=True))
    runner = StreamRunner(loaded.decoder, loaded.pages, limits.eos_token_ids, CONFIG.max_num_seqs, graphs=None)
    assert_same(run(Engine(runner, kv, config, limits), REQUESTS), eager)


def test_bad_words_and_other_edits_are_those_of_eager_steps(make_model: MakeModel) -> None:
    model = make_model("LlamaForCausalLM")
    requests = [edited_request(random.Random(index), index) for index in range(24)]
    plain = run(build_engine(load(model, 512), CONFIG), requests)
    for overlap in (False, True):
        loaded = record_graphs(load(model, 512), CONFIG, Rerun())
        assert_same(run(build_engine(loaded, replace(CONFIG, overlap=overlap)), requests), plain)


def edited_request(draw: random.Random, index: int) -> GenerationRequest:
    """Words that are likely enough to be said: of few tokens, most of which are allowed."""
    some = tuple(draw.sample(range(3, 40), 6))
    sampling = replace(
        REQUESTS[index].sampling,
        max_tokens=16,
        min_tokens=draw.choice([0, 8]),
        allowed_token_ids=draw.choice([(), some]),
        bad_word_token_ids=draw.choice([(), ((some[0],), some[1:3], some[2:5])]),
        logit_bias=dict.fromkeys(some[:2], 3.0) if draw.random() < 0.5 else {},
        logprobs=draw.choice([None, 2, 30]),
    )
    return GenerationRequest(
        request_id=RequestId(f"r{index}"),
        prompt_token_ids=tuple(draw.choices(range(256), k=draw.randint(1, 20))),
        sampling=sampling,
    )


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory) -> House:
    directory = make_checkpoint(tmp_path_factory.mktemp("byte-level"), "LlamaForCausalLM", vocab_size=272)
    write_byte_level_tokenizer(directory)
    return House(directory, 272, frozenset({2}))


@pytest.mark.parametrize("overlap", [False, True])
def test_structured_answers_are_those_of_eager_steps(house: House, overlap: bool) -> None:
    with without_native_kernels():
        eager = house.run(build_engine(load(house.model, 1024), CONFIG), mixed_requests())
        loaded = record_graphs(load(house.model, 1024), CONFIG, Rerun())
        replayed = house.run(build_engine(loaded, replace(CONFIG, overlap=overlap)), mixed_requests())
    assert {name: tokens_of(said) for name, said in replayed.items()} == {
        name: tokens_of(said) for name, said in eager.items()
    }
