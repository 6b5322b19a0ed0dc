"""Keeps structured rows to their grammars, by their logits."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from kvasir_workers.sequence import Sequence as TokenSequence


def restrict_to_grammars(logits: Tensor, sequences: Sequence[TokenSequence], eos_token_ids: frozenset[int]) -> None:
    """Forbid what a row's grammar does not allow next, in place; rows without a grammar are not touched.

    Below min_tokens the ends that a row might come to are forbidden, too, unless its grammar allows nothing else.
    """
    rows = [row for row, sequence in enumerate(sequences) if sequence.grammar is not None]
    if not rows:
        return
    allowed = np.stack([_allowed(sequences[row], eos_token_ids) for row in rows])
    forbidden = ~torch.from_numpy(allowed).to(logits.device)
    logits[rows] = logits[rows].masked_fill(forbidden, -torch.inf)


def _allowed(sequence: TokenSequence, eos_token_ids: frozenset[int]) -> "np.ndarray[tuple[int], np.dtype[np.bool_]]":
    assert sequence.grammar is not None, "only structured rows come here"
    allowed = sequence.grammar.allowed()
    sampling = sequence.request.sampling
    if sequence.num_generated < sampling.min_tokens:
        longer = allowed.copy()
        longer[[*eos_token_ids, *sampling.stop_token_ids]] = False
        if longer.any():
            return longer
    return allowed
