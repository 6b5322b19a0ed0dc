"""From logits to tokens, for all rows of a step at once.

The noise of a token is a pure function of (seed, choice, position): a request gets the same tokens in any batch, after
preemption, on any replica. A row's arithmetic, too, depends on that row alone.
"""

from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from kvasir_kernels.sampling_dispatch import largest_logit
from kvasir_protocol.events import TokenLogprobs
from kvasir_workers.runner.choice import draw, draw_filtered
from kvasir_workers.runner.grammar_mask import GrammarMasks, apply_masks
from kvasir_workers.runner.logit_edits import edit_logits
from kvasir_workers.runner.sampling_rows import RandomRows, SampledRows, SamplingRows
from kvasir_workers.runner.token_scores import score_tokens


class SampledToken(NamedTuple):
    """One row's token; logprobs if the request asked for them.

    logit: its own when it was chosen; -inf if no token was allowed, NaN if the row had one: no token, then.
    """

    token_id: int
    logprobs: TokenLogprobs | None
    logit: float = 0.0


class Sample(NamedTuple):
    """What a step said. token_ids: [R] int64, logits: [R] float32, on the device; scores: of the rows that asked."""

    token_ids: Tensor
    logits: Tensor
    scores: dict[int, TokenLogprobs]

    def tokens(self) -> list[SampledToken]:
        """Waits for the device."""
        chosen = zip(self.token_ids.tolist(), self.logits.tolist(), strict=True)
        return [SampledToken(token_id, self.scores.get(row), logit) for row, (token_id, logit) in enumerate(chosen)]


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
        token_ids, chosen_logits = _choose(logits, rows, sampled.num_generated)
        rows.remember(token_ids)
        scores = _scores(raw_logprobs, token_ids, rows) if raw_logprobs is not None else []
        return Sample(token_ids, chosen_logits, dict(zip(rows.scored, scores, strict=True)))


def _choose(logits: Tensor, rows: SamplingRows, num_generated: NDArray[np.int64]) -> tuple[Tensor, Tensor]:
    """The tokens, [R] int64, and their logits, [R] float32, as SampledToken has them."""
    num_random = len(rows.plain) + len(rows.filtered)
    if not num_random:
        return largest_logit(logits)
    is_any_greedy = num_random < len(rows.sequences)
    token_ids = logits.argmax(dim=-1) if is_any_greedy else logits.new_empty(len(logits), dtype=torch.int64)
    faults = logits.new_zeros(len(logits))
    if len(rows.plain):
        probabilities, noise = _probabilities(logits, rows.plain), rows.plain.noise(num_generated, logits.device)
        _put(token_ids, rows.plain, draw(probabilities, noise))
        _put(faults, rows.plain, _faults(probabilities))
    if len(rows.filtered):
        part = rows.filtered
        probabilities, noise = _probabilities(logits, part), part.noise(num_generated, logits.device)
        _put(token_ids, part, draw_filtered(probabilities, noise, part.top_k, part.top_p, part.min_p))
        _put(faults, part, _faults(probabilities))
    chosen = logits.gather(-1, token_ids[:, None])[:, 0]
    return token_ids, torch.where(chosen > -torch.inf, chosen + faults, chosen)


def _faults(probabilities: Tensor) -> Tensor:
    """[R]: NaN for rows that are no probabilities, else 0. One NaN among the logits makes a row of NaN."""
    return probabilities[:, 0] * 0


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
