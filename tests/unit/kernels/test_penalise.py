"""Penalties touch what was seen, and nothing else."""

import torch

from kvasir_kernels.sampling_dispatch import SeenTable, SeenTokens, penalise


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


def test_table_of_seen_tokens_says_the_same_as_pairs() -> None:
    logits = torch.tensor([[2.0, -2.0, 1.0], [2.0, -2.0, 1.0], [1.0, 1.0, 1.0]])
    seen = SeenTable(
        table=torch.tensor([[0, 1, 5], [1, 6, 0]], dtype=torch.int32),
        places=torch.tensor([1, 0, -1]),
        repetition=torch.tensor([2.0, 1.0, 9.0]),
        presence=torch.tensor([0.5, 0.25, 9.0]),
        frequency=torch.tensor([0.0, 1.0, 9.0]),
    )
    penalise(logits, seen)
    assert logits.tolist() == [[1.0, -4.5, 1.0], [2.0, -2.0, -1.25], [1.0, 1.0, 1.0]]
