"""Penalties touch what was seen, and nothing else."""

import torch

from kvasir_kernels.dispatch import SeenTokens, penalise


def test_penalties_are_those_of_the_row() -> None:
    logits = torch.tensor([[2.0, -2.0, 1.0], [2.0, -2.0, 1.0]])
    seen = SeenTokens(
        rows=torch.tensor([0, 0, 1, 1]),
        token_ids=torch.tensor([0, 1, 1, 2]),
        counts=torch.tensor([0.0, 3.0, 0.0, 2.0]),
        repetition=torch.tensor([2.0, 1.0]),
        presence=torch.tensor([0.5, 0.25]),
        frequency=torch.tensor([0.0, 1.0]),
    )
    penalise(logits, seen)
    assert logits.tolist() == [[1.0, -4.5, 1.0], [2.0, -2.0, -1.25]]
