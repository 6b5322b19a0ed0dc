"""Prompt logprobs and embeddings against transformers, whatever the chunking and the cache."""

import math
import random
from typing import Literal

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

from kvasir import LLM, Logprob, SamplingParams
from tests.integration.llm.conftest import MakeLLM

TOLERANCE = 1e-4
LENGTHS = (1, 2, 5, 33, 90)

Pooling = Literal["mean", "last", "cls"]

WAYS: dict[str, dict[str, object]] = {
    "whole": {},
    "chunked": {"max_num_batched_tokens": 7, "max_num_seqs": 7},
    "uncached": {"enable_prefix_caching": False},
    "preempted": {"kv_cache_memory_bytes": 88_000, "max_num_batched_tokens": 64},
}


def prompts() -> list[list[int]]:
    draw = random.Random(3)
    return [draw.choices(range(3, 200), k=length) for length in LENGTHS]


@torch.inference_mode()
def their_logprobs(theirs: PreTrainedModel, prompt: list[int]) -> Tensor:
    return torch.log_softmax(theirs(torch.tensor([prompt])).logits[0].float(), dim=-1)


@torch.inference_mode()
def their_embedding(theirs: PreTrainedModel, prompt: list[int], pooling: Pooling) -> Tensor:
    states = theirs.model(torch.tensor([prompt])).last_hidden_state[0]  # type: ignore[operator, union-attr]
    pooled: Tensor = {"mean": states.mean(dim=0), "last": states[-1], "cls": states[0]}[pooling]
    return pooled


def assert_prompt_logprobs(
    theirs: PreTrainedModel, prompt: list[int], ours: list[dict[int, Logprob] | None] | None, num_top: int
) -> None:
    assert ours is not None
    assert ours[0] is None
    assert len(ours) == len(prompt)
    expected = their_logprobs(theirs, prompt)
    for row, token_id, found in zip(expected, prompt[1:], ours[1:], strict=False):
        assert found is not None
        assert abs(found[token_id].logprob - float(row[token_id])) < TOLERANCE
        ranked = [item.logprob for item in found.values() if item.rank is not None]
        assert ranked == pytest.approx(row.topk(num_top).values.tolist(), abs=TOLERANCE)


@pytest.mark.parametrize("way", WAYS)
def test_prompt_logprobs_are_those_of_transformers(make_llm: MakeLLM, theirs: PreTrainedModel, way: str) -> None:
    params = SamplingParams(temperature=0, max_tokens=20, prompt_logprobs=3, ignore_eos=True)
    with make_llm(**WAYS[way]) as llm:
        outputs = llm.generate(prompts(), params, use_tqdm=False)
        assert way != "preempted" or llm.get_stats().counters.num_preemptions > 0
    for prompt, output in zip(prompts(), outputs, strict=True):
        assert_prompt_logprobs(theirs, prompt, output.prompt_logprobs, 3)


def test_prompt_logprobs_are_computed_anew_where_the_prompt_is_cached(llm: LLM, theirs: PreTrainedModel) -> None:
    prompt = prompts()[-1]
    plain = SamplingParams(temperature=0, max_tokens=4, ignore_eos=True)
    llm.generate([prompt], plain, use_tqdm=False)
    (cached,) = llm.generate([prompt], plain, use_tqdm=False)
    params = SamplingParams(temperature=0, max_tokens=4, ignore_eos=True, prompt_logprobs=1)
    (output,) = llm.generate([prompt], params, use_tqdm=False)
    assert cached.num_cached_tokens > 0
    assert output.num_cached_tokens == 0
    assert output.outputs[0].token_ids == cached.outputs[0].token_ids
    assert_prompt_logprobs(theirs, prompt, output.prompt_logprobs, 1)


def test_prompt_logprobs_are_none_unless_asked_for(llm: LLM) -> None:
    (output,) = llm.generate([[5, 6]], SamplingParams(max_tokens=1), use_tqdm=False)
    assert output.prompt_logprobs is None


@pytest.mark.parametrize("pooling", ["mean", "last", "cls"])
@pytest.mark.parametrize("way", WAYS)
def test_embeddings_are_those_of_transformers(
    make_llm: MakeLLM, theirs: PreTrainedModel, way: str, pooling: Pooling
) -> None:
    with make_llm(**WAYS[way]) as llm:
        outputs = llm.encode([*prompts(), *prompts()], pooling=pooling, use_tqdm=False)
    for prompt, output in zip([*prompts(), *prompts()], outputs, strict=True):
        expected = their_embedding(theirs, prompt, pooling)
        assert torch.allclose(torch.tensor(output.outputs.embedding), expected, rtol=0, atol=TOLERANCE)


def test_normalized_embedding_has_length_one(llm: LLM) -> None:
    (plain,) = llm.encode("some text", use_tqdm=False)
    (normalized,) = llm.encode("some text", normalize=True, use_tqdm=False)
    length = math.hypot(*plain.outputs.embedding)
    assert math.hypot(*normalized.outputs.embedding) == pytest.approx(1)
    assert normalized.outputs.embedding == pytest.approx([value / length for value in plain.outputs.embedding])


def test_embedding_of_a_cached_prompt_is_the_same(llm: LLM) -> None:
    prompt = prompts()[-1]
    for pooling in ("mean", "last", "cls"):
        (first,) = llm.encode([prompt], pooling=pooling, use_tqdm=False)  # type: ignore[arg-type]
        (second,) = llm.encode([prompt], pooling=pooling, use_tqdm=False)  # type: ignore[arg-type]
        assert second.outputs.embedding == pytest.approx(first.outputs.embedding, abs=1e-5)
        assert (second.num_cached_tokens > 0) == (pooling == "last")


def test_prompt_that_fills_the_context_has_an_embedding(llm: LLM) -> None:
    prompt = [7] * llm._limits.max_sequence_tokens
    (output,) = llm.encode([prompt], use_tqdm=False)
    assert len(output.outputs.embedding) == 64
