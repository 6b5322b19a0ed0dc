"""Sampling: the noise is the engine's, the frequencies are the probabilities', and limits leave what they should."""

import numpy as np
import pytest
import torch
from torch import Tensor

from kvasir_kernels.sample_tokens.reference import noise_of
from kvasir_kernels.sampling_dispatch import SamplingRules, sample_tokens
from kvasir_workers.runner.noise import noise_at, noise_streams

NO_TOP_K = 2**31 - 1


def _rules(num_rows: int, temperature: float, top_k: int = NO_TOP_K, top_p: float = torch.inf, min_p: float = 0):
    return SamplingRules(
        streams=torch.full((num_rows,), -(2**62)),
        positions=torch.arange(num_rows),
        temperature=torch.full((num_rows,), temperature),
        top_k=torch.full((num_rows,), top_k, dtype=torch.int32),
        top_p=torch.full((num_rows,), top_p),
        min_p=torch.full((num_rows,), float(min_p)),
    )


def _drawn(probabilities: Tensor, **limits: float) -> Tensor:
    """Of 2000 tokens, the share of each."""
    logits = probabilities.log().float().expand(2000, -1)
    token_ids, _ = sample_tokens(logits, _rules(2000, 1.0, **limits))
    return torch.bincount(token_ids, minlength=len(probabilities)) / 2000


def test_the_noise_is_that_of_the_engine() -> None:
    streams = noise_streams([1, 2**63 + 5, 7], [0, 3, 1])
    positions = np.array([0, 17, 2**40], dtype=np.uint64)
    expected = torch.from_numpy(noise_at(streams, positions)).double()
    ours = noise_of(torch.from_numpy(streams.view(np.int64)), torch.from_numpy(positions.view(np.int64)))
    assert torch.equal(ours, expected)


def test_tokens_are_drawn_as_often_as_they_are_likely() -> None:
    probabilities = torch.tensor([0.1, 0.5, 0.0, 0.25, 0.15])
    torch.testing.assert_close(_drawn(probabilities), probabilities, atol=0.04, rtol=0)
    assert _drawn(probabilities)[2] == 0


@pytest.mark.parametrize(
    ("limits", "left"),
    [
        ({"top_k": 2}, [1, 3]),
        ({"top_p": 0.5}, [1]),
        ({"top_p": 0.6}, [1, 3]),
        ({"min_p": 0.29}, [1, 3, 4]),
        ({"top_k": 3, "top_p": 0.8}, [1, 3]),
    ],
)
def test_limits_leave_the_likeliest(limits: dict[str, float], left: list[int]) -> None:
    probabilities = torch.tensor([0.1, 0.5, 0.0, 0.25, 0.15])
    drawn = _drawn(probabilities, **limits)
    assert drawn.nonzero()[:, 0].tolist() == left
    torch.testing.assert_close(drawn[left], probabilities[left] / probabilities[left].sum(), atol=0.04, rtol=0)


def test_of_equal_logits_the_first_ones_are_left() -> None:
    assert _drawn(torch.full((6,), 1 / 6), top_k=2).nonzero()[:, 0].tolist() == [0, 1]


def test_no_temperature_takes_the_likeliest() -> None:
    logits = torch.tensor([[0.0, 3.0, 3.0], [2.0, 1.0, -1.0]])
    token_ids, chosen = sample_tokens(logits, _rules(2, 0.0))
    assert (token_ids.tolist(), chosen.tolist()) == ([1, 0], [3.0, 2.0])


def test_rows_that_cannot_be_sampled_say_so() -> None:
    logits = torch.tensor([[0.0, torch.nan, 1.0], [-torch.inf] * 3])
    _, chosen = sample_tokens(logits, _rules(2, 1.0))
    assert chosen[0].isnan()
    assert chosen[1] == -torch.inf
