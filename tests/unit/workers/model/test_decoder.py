"""The decoder against transformers: the same logits in float32, however the prompt is fed."""

from typing import NamedTuple

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

from kvasir_workers.model.decoder import Decoder
from kvasir_workers.model.loader import load_decoder
from tests.checkpoints import make_checkpoint
from tests.families import CASES, PROMPTS
from tests.unit.workers.model.paged_prompts import PagedPrompts


class Pair(NamedTuple):
    """Our decoder and the logits transformers gives for each prompt."""

    decoder: Decoder
    expected: list[Tensor]


@pytest.fixture(scope="module", params=list(CASES.values()), ids=list(CASES))
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Pair:
    family, overrides = request.param
    path = make_checkpoint(tmp_path_factory.mktemp("checkpoint"), family, **overrides)
    theirs = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32, attn_implementation="eager")
    with torch.inference_mode():
        expected = [theirs(prompt[None]).logits[0] for prompt in PROMPTS]
    return Pair(load_decoder(path, torch.float32, torch.device("cpu")), expected)


def _assert_same(actual: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(actual, expected, atol=1e-4, rtol=0)


def test_whole_prompt_gives_the_logits_of_transformers(pair: Pair) -> None:
    logits = PagedPrompts(pair.decoder, 1).step({0: PROMPTS[0].tolist()})
    _assert_same(logits[0], pair.expected[0])


def test_chunks_give_the_same_logits(pair: Pair) -> None:
    prompts = PagedPrompts(pair.decoder, 1)
    logits = [prompts.step({0: chunk.tolist()})[0] for chunk in torch.split(PROMPTS[0], [5, 1, 10, 13])]
    _assert_same(torch.cat(logits), pair.expected[0])


def test_token_by_token_gives_the_same_logits(pair: Pair) -> None:
    prompts = PagedPrompts(pair.decoder, 1)
    logits = [prompts.step({0: [token]})[0] for token in PROMPTS[0].tolist()]
    _assert_same(torch.cat(logits), pair.expected[0])


def test_two_sequences_in_one_batch_do_not_meet(pair: Pair) -> None:
    """The first decodes while the second is still prefilled, then both decode."""
    prompts = PagedPrompts(pair.decoder, 2)
    first, second = (prompt.tolist() for prompt in PROMPTS)
    steps = [{0: first[:20]}, {0: first[20:21], 1: second[:9]}, {1: second[9:10], 0: first[21:24]}]
    steps += [{0: [first[24 + index]], 1: [second[10 + index]]} for index in range(5)]
    steps += [{1: second[15:]}]
    outputs = [prompts.step(step) for step in steps]
    for index, expected in enumerate(pair.expected):
        _assert_same(torch.cat([output[index] for output in outputs if index in output]), expected)
