"""Sequences whose next token is wanted, and logits for it."""

import random

import torch
from torch import Tensor

from kvasir_protocol.request import GenerationRequest, SamplingParams
from kvasir_workers.sequence import Sequence
from tests.unit.workers.fakes import make_request

V = 12


def sequence_of(
    prompt: tuple[int, ...] = (1, 2), answer: tuple[int, ...] = (), choice_index: int = 0, **sampling: object
) -> Sequence:
    params = SamplingParams(**{"max_tokens": 99, "seed": 7, **sampling})  # type: ignore[arg-type]
    plain = make_request("r", prompt, sampling=params)
    request = GenerationRequest(
        request_id=plain.request_id, prompt_token_ids=prompt, sampling=params, choice_index=choice_index
    )
    sequence = Sequence(request)
    sequence.token_ids += answer
    return sequence


def random_logits(seed: int, size: int = V) -> Tensor:
    return torch.randn(size, generator=torch.Generator().manual_seed(seed)) * 2


def random_row(draw: random.Random) -> Sequence:
    answer = tuple(draw.choices(range(V), k=draw.randint(0, 6)))
    return sequence_of(
        answer=answer,
        seed=draw.randint(0, 10**6),
        temperature=draw.choice([0, 0.5, 1.0, 1.7]),
        top_p=draw.choice([1.0, 0.7]),
        top_k=draw.choice([0, 4]),
        min_p=draw.choice([0.0, 0.1]),
        repetition_penalty=draw.choice([1.0, 1.3]),
        presence_penalty=draw.choice([0.0, 0.5]),
        frequency_penalty=draw.choice([0.0, -0.4]),
        min_tokens=draw.choice([0, 4]),
        logprobs=draw.choice([None, 0, 3]),
        logit_bias=draw.choice([{}, {}, {1: 2.0, 8: -3.0}]),
        allowed_token_ids=draw.choice([(), (), (1, 2, 5, 6, 9)]),
        bad_word_token_ids=draw.choice([(), ((4,), (1, 5))]),
    )
