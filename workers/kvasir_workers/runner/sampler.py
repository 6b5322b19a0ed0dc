"""From logits to tokens, for all rows of a step at once.

The noise of a token is a pure function of (seed, choice, position): a request gets the same tokens in any batch, after
preemption, on any replica. A row's arithmetic, too, depends on that row alone.
"""

from itertools import repeat
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from kvasir_protocol.events import TokenLogprobs
from kvasir_workers.runner.choice import draw, draw_filtered
from kvasir_workers.runner.grammar_mask import GrammarMasks, apply_masks
from kvasir_workers.runner.logit_edits import edit_logits
from kvasir_workers.runner.sampling_rows import RandomRows, SampledRows, SamplingRows
from kvasir_workers.runner.token_scores import score_tokens


class SampledToken(NamedTuple):
    """One row's token; logprobs if the request asked for them."""

    token_id: int
    logprobs: TokenLogprobs | None


class Sample(NamedTuple):
    """What a step said. token_ids: [R] int64, on the device; scores: of the rows that asked for them."""

    token_ids: Tensor
    scores: dict[int, TokenLogprobs]

    def tokens(self) -> list[SampledToken]:
        """Waits for the device."""
        if not self.scores:
            return list(map(SampledToken, self.token_ids.tolist(), repeat(None)))
        return [SampledToken(token_id, self.scores.get(row)) for row, token_id in enumerate(self.token_ids.tolist())]


class Sampler:
    """Samples step after step; what the rows ask for is read anew only when other sequences are in the batch."""

    def __init__(self, eos_token_ids: frozenset[int]) -> None:
        self._eos_token_ids = eos_token_ids
        self._rows: SamplingRows | None = None

    def sample(self, logits: Tensor, sampled: SampledRows, masks: GrammarMasks | None) -> Sample:
        """The next token of each sequence. logits: [R, V] float32, changed in place; masks: of structured rows."""
        rows = self._rows
        if rows is None or rows.sequences != sampled.sequences:
            rows = self._rows = SamplingRows.of(sampled.sequences, logits.device, rows)
        raw_logprobs = torch.log_softmax(logits[list(rows.scored)], dim=-1) if rows.scored else None
        if masks is not None:
            apply_masks(logits, masks)
        edit_logits(logits, rows, sampled.num_generated, self._eos_token_ids)
        token_ids = _choose(logits, rows, sampled.num_generated)
        rows.remember(token_ids)
        scores = _scores(raw_logprobs, token_ids, rows) if raw_logprobs is not None else []
        return Sample(token_ids, dict(zip(rows.scored, scores, strict=True)))


def _choose(logits: Tensor, rows: SamplingRows, num_generated: NDArray[np.int64]) -> Tensor:
    """[R] int64."""
    num_random = len(rows.plain) + len(rows.filtered)
    token_ids = logits.argmax(dim=-1) if num_random < len(rows.sequences) else logits.new_empty(0, dtype=torch.int64)
    if not num_random:
        return token_ids
    token_ids = token_ids if len(token_ids) else logits.new_empty(len(rows.sequences), dtype=torch.int64)
    if len(rows.plain):
        chosen = draw(_probabilities(logits, rows.plain), rows.plain.noise(num_generated, logits.device))
        _put(token_ids, rows.plain, chosen)
    if len(rows.filtered):
        part = rows.filtered
        noise = part.noise(num_generated, logits.device)
        chosen = draw_filtered(_probabilities(logits, part), noise, part.top_k, part.top_p, part.min_p)
        _put(token_ids, part, chosen)
    return token_ids


def _probabilities(logits: Tensor, part: RandomRows) -> Tensor:
    """[R, V] of the part's rows, at their temperatures."""
    chosen = logits if part.rows is None else logits[part.rows]
    return torch.softmax(chosen / part.temperature[:, None], dim=-1)


def _put(token_ids: Tensor, part: RandomRows, chosen: Tensor) -> None:
    if part.rows is None:
        token_ids.copy_(chosen)
    else:
        token_ids[part.rows] = chosen


def _scores(raw_logprobs: Tensor, token_ids: Tensor, rows: SamplingRows) -> list[TokenLogprobs]:
    """Of the rows that asked, in their order. raw_logprobs: the model's own, before penalties and temperature."""
    numbers = [rows.sequences[row].request.sampling.logprobs or 0 for row in rows.scored]
    return score_tokens(raw_logprobs, token_ids[list(rows.scored)], numbers)
