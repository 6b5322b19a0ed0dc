"""A warm-up reaches every chunk and every way to sample, and leaves an engine as it was."""

from dataclasses import replace

import pytest

from kvasir.demo import demo_model_path
from kvasir_protocol.config import EngineConfig, ModelConfig
from kvasir_workers.load import LoadedModel, load_model
from kvasir_workers.ready import make_ready, record_graphs, warm_up, waves
from kvasir_workers.request_check import EngineLimits, check_request
from tests.fakes.recorder import LoggedRecorder

DEMO_MODEL = demo_model_path()
CONFIG = EngineConfig(device="cpu", max_num_seqs=9, max_num_batched_tokens=100, kv_cache_bytes=2**24)


@pytest.fixture(scope="module")
def loaded() -> LoadedModel:
    return load_model(ModelConfig(path=str(DEMO_MODEL), served_name="m"), CONFIG)


def limits(max_sequence_tokens: int) -> EngineLimits:
    return EngineLimits(max_sequence_tokens=max_sequence_tokens, vocab_size=10, eos_token_ids=frozenset({2}))


def prompt_sizes(max_sequence_tokens: int, config: EngineConfig = CONFIG) -> list[list[int]]:
    *prompts, _ = waves(limits(max_sequence_tokens), config)
    return [[len(request.prompt_token_ids) for request in wave] for wave in prompts]


def test_prompts_are_of_every_power_of_two_up_to_a_full_step() -> None:
    assert prompt_sizes(1000) == [[1], [2], [4], [8], [16], [32], [64], [100]]


def test_a_full_step_is_reached_by_several_prompts_where_sequences_are_short() -> None:
    assert prompt_sizes(20)[4:] == [[16], [18, 14], [18, 18, 18, 10], [18, 18, 18, 18, 18, 10]]


def test_a_full_step_is_reached_by_several_prompts_where_chunks_are_short() -> None:
    assert prompt_sizes(1000, replace(CONFIG, max_prefill_chunk_tokens=40))[-1] == [40, 40, 20]


def test_no_more_prompts_than_may_run_at_once() -> None:
    assert prompt_sizes(5)[-1] == [3] * 9


@pytest.mark.parametrize("max_sequence_tokens", [1, 2, 3, 4])
def test_an_engine_takes_every_request_however_short_sequences_are(max_sequence_tokens: int) -> None:
    found = [request for wave in waves(limits(max_sequence_tokens), CONFIG) for request in wave]
    assert bool(found) == (max_sequence_tokens > 1)
    for request in found:
        check_request(request, limits(max_sequence_tokens))


def test_every_way_to_sample_is_tried() -> None:
    *_, ways = waves(limits(100), CONFIG)
    found = [request.sampling for request in ways]
    assert any(sampling.temperature == 0 for sampling in found)
    assert any(sampling.temperature > 0 and sampling.top_k == 0 and sampling.top_p == 1 for sampling in found)
    assert any(sampling.top_k and sampling.top_p < 1 and sampling.min_p for sampling in found)
    assert any(sampling.repetition_penalty != 1 and sampling.frequency_penalty for sampling in found)
    assert {sampling.logprobs for sampling in found} == {None, 1, 21}
    assert any(sampling.bad_word_token_ids for sampling in found)
    assert any(sampling.logit_bias and sampling.min_tokens for sampling in found)


def test_graphs_are_as_many_as_the_grid_has_and_recorded_before_warming_up(loaded: LoadedModel) -> None:
    recorder = LoggedRecorder()
    with_graphs = record_graphs(loaded, CONFIG, recorder)
    assert recorder.recorded == ["9 decodes", "8 decodes", "4 decodes", "2 decodes", "1 decodes"]
    warm_up(with_graphs, CONFIG)
    assert len(recorder.recorded) == 5


def test_warming_up_takes_a_sequence_as_short_as_may_be(loaded: LoadedModel) -> None:
    warm_up(replace(loaded, limits=replace(loaded.limits, max_sequence_tokens=3)), CONFIG)


def test_a_cpu_is_ready_as_it_is(loaded: LoadedModel) -> None:
    assert make_ready(loaded, CONFIG) is loaded
