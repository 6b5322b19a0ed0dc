"""Greedy text of the engine and of transformers: the same ids, the same logprobs, for every family."""

import functools
import random
from typing import NamedTuple

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedModel

from kvasir_kernels.native.choice import without_native_kernels
from kvasir_protocol.ids import RequestId
from kvasir_protocol.request import GenerationRequest, SamplingParams
from tests.integration.engine.conftest import DEMO_MODEL, FAMILIES, Answer, MakeModel, Model, run

NUM_TOKENS = 16
NUM_TOP = 4
TOLERANCE = 1e-4
PROMPT_LENGTHS = (1, 4, 13, 30)


def test_demo_model_is_there() -> None:
    assert (DEMO_MODEL / "model.safetensors").is_file(), "the demo model was not trained or not installed"


class Pair(NamedTuple):
    model: Model
    theirs: PreTrainedModel

    def prompts(self) -> list[list[int]]:
        draw = random.Random(5)
        return [draw.choices(range(self.theirs.config.vocab_size), k=length) for length in PROMPT_LENGTHS]

    def requests(self) -> list[GenerationRequest]:
        sampling = SamplingParams(temperature=0, max_tokens=NUM_TOKENS, seed=0, ignore_eos=True, logprobs=NUM_TOP)
        return [
            GenerationRequest(request_id=RequestId(f"r{i}"), prompt_token_ids=tuple(prompt), sampling=sampling)
            for i, prompt in enumerate(self.prompts())
        ]


@functools.cache
def load_theirs(path: str) -> PreTrainedModel:
    model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(
        path, dtype=torch.float32, attn_implementation="eager"
    )
    model.generation_config.eos_token_id = None  # type: ignore[union-attr]
    model.config.eos_token_id = None
    return model


@pytest.fixture(params=[*FAMILIES, "demo"])
def pair(request: pytest.FixtureRequest, make_model: MakeModel) -> Pair:
    model = make_model(request.param)
    return Pair(model, load_theirs(str(model.path)))


@torch.inference_mode()
def generate(theirs: PreTrainedModel, prompt: list[int]) -> list[int]:
    """Their greedy continuation. The mask is given, since a prompt of random ids may hold the pad id."""
    ids = torch.tensor([prompt])
    generated = theirs.generate(  # type: ignore[operator]
        ids,
        attention_mask=torch.ones_like(ids),
        do_sample=False,
        min_new_tokens=NUM_TOKENS,
        max_new_tokens=NUM_TOKENS,
        eos_token_id=None,
        pad_token_id=0,
    )
    answer: list[int] = generated[0, len(prompt) :].tolist()
    return answer


@torch.inference_mode()
def teacher_forced(theirs: PreTrainedModel, prompt: list[int], answer: list[int]) -> Tensor:
    """Their log-probabilities at each token of our answer: [T, V]."""
    ids = torch.tensor([[*prompt, *answer[:-1]]])
    logits = theirs(ids, attention_mask=torch.ones_like(ids)).logits[0, len(prompt) - 1 :]
    return torch.log_softmax(logits.float(), dim=-1)


def assert_greedy(theirs: PreTrainedModel, prompt: list[int], answer: Answer) -> None:
    """Each token is their best one or, where their two best lie within the tolerance, as good."""
    expected = teacher_forced(theirs, prompt, answer.token_ids)
    chosen = expected[torch.arange(NUM_TOKENS), torch.tensor(answer.token_ids)]
    assert float((expected.max(dim=-1).values - chosen).max()) <= TOLERANCE


def test_greedy_ids_are_those_of_transformers(pair: Pair) -> None:
    answers = run(pair.model.engine(), pair.requests())
    for prompt, answer in zip(pair.prompts(), answers, strict=True):
        if answer.token_ids != generate(pair.theirs, prompt):
            assert_greedy(pair.theirs, prompt, answer)


def test_every_greedy_id_is_their_best_after_ours(pair: Pair) -> None:
    answers = run(pair.model.engine(), pair.requests())
    for prompt, answer in zip(pair.prompts(), answers, strict=True):
        assert_greedy(pair.theirs, prompt, answer)


def test_greedy_ids_are_those_of_transformers_where_nothing_could_be_compiled(pair: Pair) -> None:
    with without_native_kernels():
        answers = run(pair.model.engine(), pair.requests())
    for prompt, answer in zip(pair.prompts(), answers, strict=True):
        assert_greedy(pair.theirs, prompt, answer)


def test_logprobs_are_those_of_transformers(pair: Pair) -> None:
    answers = run(pair.model.engine(), pair.requests())
    for prompt, answer in zip(pair.prompts(), answers, strict=True):
        expected = teacher_forced(pair.theirs, prompt, answer.token_ids)
        for row, token, ours in zip(expected, answer.token_ids, answer.logprobs, strict=True):
            assert abs(float(row[token]) - ours.logprob) < TOLERANCE
            assert torch.allclose(row.topk(NUM_TOP).values, torch.tensor(ours.top_logprobs), rtol=0, atol=TOLERANCE)
            assert torch.allclose(
                row[list(ours.top_token_ids)], torch.tensor(ours.top_logprobs), rtol=0, atol=TOLERANCE
            )


@pytest.mark.parametrize("how", ["chunked", "token-by-token", "preempted", "without-cache"])
def test_greedy_ids_do_not_depend_on_the_way_there(pair: Pair, how: str) -> None:
    engine = {
        "chunked": lambda: pair.model.engine(budget=7, max_num_seqs=7),
        "token-by-token": lambda: pair.model.engine(budget=1, max_num_seqs=1),
        "preempted": lambda: pair.model.engine(num_pages=14),
        "without-cache": lambda: pair.model.engine(num_pages=14, caches=False),
    }[how]()
    answers = run(engine, pair.requests())
    assert how in ("chunked", "token-by-token") or engine.counters().num_preemptions > 0
    for prompt, answer in zip(pair.prompts(), answers, strict=True):
        assert_greedy(pair.theirs, prompt, answer)
