"""The LLM class: streams, statistics, and what is left when it is closed."""

import gc
import signal
import weakref
from collections.abc import Iterator
from itertools import count
from pathlib import Path

import pytest

from kvasir import LLM, Increment, SamplingParams
from kvasir_protocol.errors import InvalidRequest
from kvasir_protocol.structured import structured_output
from kvasir_workers.runner.device import StepFlight
from kvasir_workers.step_plan import StepPlan
from tests.integration.llm.conftest import PAGE_SIZE, MakeLLM

PROMPT = "The quick brown fox jumps over the lazy dog. " * 2
GREEDY = SamplingParams(temperature=0, max_tokens=12, ignore_eos=True)


def joined(increments: list[Increment]) -> tuple[str, list[int]]:
    token_ids = [token_id for increment in increments for token_id in increment.token_ids]
    return "".join(increment.text for increment in increments), token_ids


def test_stream_joins_to_the_whole_answer(llm: LLM) -> None:
    (whole,) = llm.generate(PROMPT, GREEDY, use_tqdm=False)
    increments = list(llm.stream(PROMPT, GREEDY))
    assert len(increments) == 12
    assert joined(increments) == (whole.outputs[0].text, whole.outputs[0].token_ids)
    assert [increment.finish_reason for increment in increments] == [None] * 11 + ["length"]


def test_streams_run_beside_each_other_and_beside_other_calls(llm: LLM) -> None:
    expected = joined(list(llm.stream(PROMPT, GREEDY)))
    first, second = llm.stream(PROMPT, GREEDY), llm.stream(PROMPT, GREEDY)
    head = [next(first), next(second)]
    llm.generate("something else", GREEDY, use_tqdm=False)
    assert joined([head[0], *first]) == joined([head[1], *second]) == expected


def test_several_choices_are_told_apart(llm: LLM) -> None:
    params = SamplingParams(n=3, seed=5, max_tokens=6, ignore_eos=True)
    (whole,) = llm.generate(PROMPT, params, use_tqdm=False)
    increments = list(llm.stream(PROMPT, params))
    for output in whole.outputs:
        assert joined([item for item in increments if item.index == output.index])[1] == output.token_ids


@pytest.mark.parametrize("num_prompt_tokens", [3, 10, 16, 47])
def test_choices_compute_their_prompt_once_but_for_less_than_a_page_each(
    make_llm: MakeLLM, num_prompt_tokens: int
) -> None:
    params = SamplingParams(n=8, seed=5, max_tokens=6, ignore_eos=True)
    prompt = list(range(3, 3 + num_prompt_tokens))
    with make_llm() as llm:
        llm.generate(prompt, params, use_tqdm=False)
        num_computed = llm.get_stats().counters.computed_prompt_tokens
    assert num_computed <= num_prompt_tokens + 7 * max(1, num_prompt_tokens % PAGE_SIZE)


@pytest.mark.parametrize("num_read", [0, 3])
@pytest.mark.parametrize("how", ["closed", "dropped"])
def test_stream_that_is_left_ends_its_request(llm: LLM, num_read: int, how: str) -> None:
    num_before = llm.get_stats().counters.finished_abort
    stream = llm.stream(PROMPT, GREEDY)
    for _ in range(num_read):
        next(stream)
    assert llm.get_stats().num_running + llm.get_stats().num_waiting == 1
    if how == "closed":
        stream.close()
    del stream
    gc.collect()
    stats = llm.get_stats()
    assert (stats.num_running, stats.num_waiting, stats.num_used_pages) == (0, 0, 0)
    assert stats.counters.finished_abort == num_before + 1


def test_request_that_cannot_be_served_leaves_nothing_of_its_batch(llm: LLM) -> None:
    params = [GREEDY, SamplingParams(allowed_token_ids=(10**6,))]
    with pytest.raises(InvalidRequest, match="allowed_token_ids: token id 1000000 is not in the vocabulary"):
        llm.generate([PROMPT, PROMPT], params, use_tqdm=False)
    assert llm.get_stats().num_waiting == 0


def test_statistics_count_what_was_done(make_llm: MakeLLM) -> None:
    with make_llm() as llm:
        (output,) = llm.generate([[5] * 10], GREEDY, use_tqdm=False)
        (again,) = llm.generate([[5] * 10], GREEDY, use_tqdm=False)
        counters = llm.get_stats().counters
        assert (output.num_cached_tokens, again.num_cached_tokens) == (0, 9)
        assert (counters.prompt_tokens, counters.cached_prompt_tokens, counters.generated_tokens) == (20, 9, 24)
        assert counters.finished_length == 2
        assert llm.get_stats().num_pages > 0


def test_times_of_a_request_are_in_order(llm: LLM) -> None:
    (output,) = llm.generate(PROMPT, GREEDY, use_tqdm=False)
    assert 0 <= output.metrics.queue_s <= output.metrics.first_token_s < output.metrics.finished_s


def test_request_that_waits_for_a_place_has_waited_in_the_queue(make_llm: MakeLLM) -> None:
    with make_llm(max_num_seqs=1) as llm:
        first, second = llm.generate([PROMPT, PROMPT], GREEDY, use_tqdm=False)
        assert second.metrics.queue_s >= first.metrics.first_token_s


@pytest.fixture
def heeded_interrupts() -> Iterator[None]:
    """As in a terminal; a shell has what it starts in the background ignore them."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("heeded_interrupts")
@pytest.mark.parametrize("overlap", [False, True])
@pytest.mark.parametrize("form", [None, {"regex": "[a-z]{40}"}])
def test_interrupted_call_leaves_nothing_and_the_next_one_is_right(
    make_llm: MakeLLM, overlap: bool, form: object
) -> None:
    structured = structured_output(form) if form is not None else None  # type: ignore[arg-type]
    params = SamplingParams(temperature=0, max_tokens=30, structured_outputs=structured)
    with make_llm(overlap=overlap) as llm:
        (expected,) = llm.generate(PROMPT, params, use_tqdm=False)
        runner = llm._driver.engine._runner
        steps = count()

        class Interrupted:
            def launch(self, plan: StepPlan) -> StepFlight:
                if next(steps) == 5:
                    signal.raise_signal(signal.SIGINT)
                return runner.launch(plan)

        llm._driver.engine._runner = Interrupted()
        with pytest.raises(KeyboardInterrupt):
            llm.generate(PROMPT, params, use_tqdm=False)
        llm._driver.engine._runner = runner
        stats = llm.get_stats()
        assert (stats.num_running, stats.num_waiting, stats.num_used_pages) == (0, 0, 0)
        llm._driver.engine.audit()
        (again,) = llm.generate(PROMPT, params, use_tqdm=False)
        assert again.outputs[0].token_ids == expected.outputs[0].token_ids


def test_engine_that_failed_is_not_asked_again(make_llm: MakeLLM) -> None:
    class Broken:
        def launch(self, plan: StepPlan) -> StepFlight:
            raise MemoryError("no more")

    with make_llm() as llm:
        llm._driver.engine._runner = Broken()
        with pytest.raises(MemoryError):
            llm.generate(PROMPT, GREEDY, use_tqdm=False)
        with pytest.raises(RuntimeError, match="make a new LLM"):
            llm.generate(PROMPT, GREEDY, use_tqdm=False)


def test_closing_frees_weights_and_pages(make_llm: MakeLLM) -> None:
    with make_llm() as llm:
        llm.generate(PROMPT, GREEDY, use_tqdm=False)
        engine = weakref.ref(llm._driver.engine._runner._model._decoder)  # type: ignore[attr-defined]
        open_stream = llm.stream(PROMPT, GREEDY)
    assert engine() is None
    with pytest.raises(RuntimeError, match="closed"):
        llm.generate(PROMPT, GREEDY)
    open_stream.close()


# What the choice may be


def test_bad_words_do_not_come(llm: LLM) -> None:
    params = SamplingParams(seed=1, max_tokens=200, ignore_eos=True, temperature=2.0)
    (free,) = llm.generate(PROMPT, params, use_tqdm=False)
    words = sorted({word for word in free.outputs[0].text.split() if word.isascii() and len(word) > 1})[:5]
    assert words
    banned = SamplingParams(
        seed=1, max_tokens=200, ignore_eos=True, temperature=2.0, bad_words=tuple(words), skip_special_tokens=False
    )
    (output,) = llm.generate(PROMPT, banned, use_tqdm=False)
    ids = output.outputs[0].token_ids
    for word in words:
        for spelling in llm._codec.bad_word_token_ids([word]):
            assert all(tuple(ids[i : i + len(spelling)]) != spelling for i in range(len(ids)))


def test_only_allowed_tokens_come(llm: LLM) -> None:
    params = SamplingParams(seed=1, max_tokens=40, allowed_token_ids=(30, 40, 50))
    (output,) = llm.generate(PROMPT, params, use_tqdm=False)
    assert set(output.outputs[0].token_ids) == {30, 40, 50}


def test_bias_of_a_hundred_decides(llm: LLM) -> None:
    (output,) = llm.generate(PROMPT, SamplingParams(seed=1, max_tokens=9, logit_bias={33: 100}), use_tqdm=False)
    assert output.outputs[0].token_ids == [33] * 9


def test_text_is_the_same_with_pages_from_host_memory_and_disk(make_llm: MakeLLM, tmp_path: Path) -> None:
    prompts = [f"{number} {PROMPT}" for number in range(6)]
    with make_llm(enable_prefix_caching=False) as plain:
        expected = [output.outputs[0].text for output in plain.generate(prompts, GREEDY, use_tqdm=False)]
    page_bytes = 3 * 2 * PAGE_SIZE * 2 * 16 * 4
    tiers = {
        "kv_cache_memory_bytes": 32 * page_bytes,
        "host_cache_memory_bytes": 64 * page_bytes,
        "disk_cache_bytes": 2**22,
        "disk_cache_path": str(tmp_path),
    }
    with make_llm(**tiers) as llm:
        for _ in range(3):
            texts = [llm.generate(prompt, GREEDY, use_tqdm=False)[0].outputs[0].text for prompt in prompts]
            assert texts == expected
        counters = llm.get_stats().counters
        assert min(counters.host_saved_pages, counters.disk_saved_pages) > 0
        llm.close()


def test_weights_and_cache_of_float8_answer_at_any_number_of_ranks(make_llm: MakeLLM) -> None:
    with make_llm(quantization="fp8", kv_cache_dtype="fp8") as llm:
        expected = [output.outputs[0].text for output in llm.generate([PROMPT] * 2, GREEDY, use_tqdm=False)]
    assert expected[0]
    assert expected[0] == expected[1]
    with make_llm(quantization="fp8", kv_cache_dtype="fp8", pipeline_parallel_size=3) as llm:
        texts = [output.outputs[0].text for output in llm.generate([PROMPT] * 2, GREEDY, use_tqdm=False)]
    assert texts == expected
