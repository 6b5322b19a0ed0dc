"""Priorities in the engine without a server."""

import pytest

from kvasir import LLM, SamplingParams
from kvasir_protocol.errors import InvalidRequest

PROMPTS = ["Who was Kvasir?", "What is a page?"]
GREEDY = SamplingParams(temperature=0, max_tokens=4)


@pytest.fixture(scope="module")
def llm() -> LLM:
    return LLM(device="cpu", max_num_seqs=1, scheduling_policy="priority", kv_cache_memory_bytes=2**23)


def test_answers_are_the_same_in_any_order_of_priority(llm: LLM) -> None:
    first, second = (llm.generate(PROMPTS, GREEDY, use_tqdm=False, priority=order) for order in ([0, 1], [1, 0]))
    assert [answer.outputs[0].token_ids for answer in first] == [answer.outputs[0].token_ids for answer in second]


def test_lower_priority_is_computed_first(llm: LLM) -> None:
    """The second prompt begins with the first, and finds its pages in the cache only if it comes after it."""
    text = "Kvasir was wiser than all others of his time. " * 4
    for order, expected in (([1, 0], True), ([0, 1], False)):
        prompts = [f"{order} {text}", f"{order} {text}{text}"]
        answers = llm.generate(prompts, GREEDY, use_tqdm=False, priority=order)
        assert (answers[1].num_cached_tokens == 0) is expected


def test_number_of_priorities_is_that_of_the_prompts(llm: LLM) -> None:
    with pytest.raises(InvalidRequest, match="1 priorities for 2 prompts"):
        llm.generate(PROMPTS, GREEDY, use_tqdm=False, priority=[1])
