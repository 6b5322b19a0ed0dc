"""A mask falls on its own row and on no other."""

from dataclasses import dataclass

import numpy as np
import torch

from kvasir_protocol.request import SamplingParams
from kvasir_workers.runner.grammar_mask import apply_masks
from kvasir_workers.sequence import Sequence
from tests.unit.workers.fakes import make_request
from tests.unit.workers.runner.fresh_sampler import masks_of, sample

V = 12
EOS = frozenset({0})


@dataclass
class FakeGrammar:
    """Allows these tokens, whatever came before."""

    tokens: tuple[int, ...]

    def allowed(self) -> "np.ndarray[tuple[int], np.dtype[np.bool_]]":
        mask = np.zeros(V, dtype=np.bool_)
        mask[list(self.tokens)] = True
        return mask


def sequence(name: str, tokens: tuple[int, ...] | None, **sampling: object) -> Sequence:
    params = SamplingParams(**{"max_tokens": 9, "seed": 3, **sampling})  # type: ignore[arg-type]
    made = Sequence(make_request(name, [1, 2], sampling=params))
    if tokens is not None:
        made.grammar = FakeGrammar(tokens)  # type: ignore[assignment]
    return made


def allowed_after(logits: torch.Tensor, row: int) -> list[int]:
    return torch.isfinite(logits[row]).nonzero()[:, 0].tolist()


def test_each_structured_row_keeps_what_its_own_grammar_allows() -> None:
    before = torch.randn(4, V)
    logits = before.clone()
    rows = [sequence("a", None), sequence("b", (3, 4)), sequence("c", None), sequence("d", (0, 11))]
    masks = masks_of(rows, EOS)
    assert masks is not None
    apply_masks(logits, masks)
    assert torch.equal(logits[[0, 2]], before[[0, 2]])
    assert [allowed_after(logits, 1), allowed_after(logits, 3)] == [[3, 4], [0, 11]]
    assert torch.equal(logits[1, [3, 4]], before[1, [3, 4]])


def test_below_min_tokens_an_end_is_allowed_only_if_nothing_else_is() -> None:
    logits = torch.randn(3, V)
    rows = [
        sequence("a", (0, 5), min_tokens=2),
        sequence("b", (0,), min_tokens=2),
        sequence("c", (5, 7), min_tokens=2, stop_token_ids=(7,)),
    ]
    masks = masks_of(rows, EOS)
    assert masks is not None
    apply_masks(logits, masks)
    assert [allowed_after(logits, row) for row in range(3)] == [[5], [0], [5]]


def test_structured_row_samples_what_is_allowed_and_its_neighbours_what_they_would_alone() -> None:
    options = [{"temperature": 0}, {"temperature": 1.0}, {"temperature": 2.0, "top_k": 3}, {"min_p": 0.9}]
    for option in options:
        logits = torch.randn(3, V)
        free = [sequence("a", None, **option), sequence("c", None, **option)]
        alone = [token.token_id for token in sample(logits[[0, 2]].clone(), free, EOS)]
        batch = sample(logits.clone(), [free[0], sequence("b", (6, 9), **option), free[1]], EOS)
        assert [batch[0].token_id, batch[2].token_id] == alone
        assert batch[1].token_id in (6, 9)


def test_logprobs_are_those_of_the_model_before_the_mask() -> None:
    logits = torch.zeros(1, V)
    (token,) = sample(logits, [sequence("a", (6,), logprobs=V)], EOS)
    assert token.logprobs is not None
    assert len(set(token.logprobs.top_logprobs)) == 1
