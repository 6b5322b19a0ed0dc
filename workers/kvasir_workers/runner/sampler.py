"""From logits to tokens, for all rows of a step at once.

The noise of a token is a pure function of (seed, choice, position): a request gets the same tokens in any batch, after
preemption, on any replica. A row's arithmetic, too, depends on that row alone.
"""

from collections.abc import Sequence
from itertools import repeat
from typing import NamedTuple

import torch
from torch import Tensor

from kvasir_protocol.events import TokenLogprobs
from kvasir_workers.runner.choice import draw, draw_filtered
from kvasir_workers.runner.grammar_mask import restrict_to_grammars
from kvasir_workers.runner.logit_edits import edit_logits
from kvasir_workers.runner.sampling_rows import RandomRows, SamplingRows
from kvasir_workers.runner.token_scores import score_tokens
from kvasir_workers.sequence import Sequence as TokenSequence


class SampledToken(NamedTuple):
    """One row's token; logprobs if the request asked for them."""

    token_id: int
    logprobs: TokenLogprobs | None


class Sampler:
    """Samples step after step; what the rows ask for is read anew only when other sequences are in the batch."""

    def __init__(self, eos_token_ids: frozenset[int]) -> None:
        self._eos_token_ids = eos_token_ids
        self._rows: SamplingRows | None = None

    def sample(self, logits: Tensor, sequences: tuple[TokenSequence, ...]) -> list[SampledToken]:
        """The next token of each sequence. logits: [R, V] float32, changed in place; row i is sequences[i]'s."""
        rows = self._rows
        if rows is None or rows.sequences != sequences:
            rows = self._rows = SamplingRows.of(sequences, logits.device, rows)
        raw_logprobs = torch.log_softmax(logits[list(rows.scored)], dim=-1) if rows.scored else None
        restrict_to_grammars(logits, rows.sequences, self._eos_token_ids)
        edit_logits(logits, rows, self._eos_token_ids)
        token_ids = _choose(logits, rows)
        if raw_logprobs is None:
            return list(map(SampledToken, token_ids.tolist(), repeat(None)))
        scores = dict(zip(rows.scored, _scores(raw_logprobs, token_ids, rows), strict=True))
        return [SampledToken(token_id, scores.get(row)) for row, token_id in enumerate(token_ids.tolist())]


def sample(logits: Tensor, sequences: Sequence[TokenSequence], eos_token_ids: frozenset[int]) -> list[SampledToken]:
    """One step of a sampler that remembers nothing."""
    return Sampler(eos_token_ids).sample(logits, tuple(sequences))


def _choose(logits: Tensor, rows: SamplingRows) -> Tensor:
    """[R] int64."""
    num_random = len(rows.plain) + len(rows.filtered)
    token_ids = logits.argmax(dim=-1) if num_random < len(rows.sequences) else logits.new_empty(0, dtype=torch.int64)
    if not num_random:
        return token_ids
    token_ids = token_ids if len(token_ids) else logits.new_empty(len(rows.sequences), dtype=torch.int64)
    if len(rows.plain):
        chosen = draw(_probabilities(logits, rows.plain), rows.plain.noise(logits.device))
        _put(token_ids, rows.plain, chosen)
    if len(rows.filtered):
        part = rows.filtered
        noise = part.noise(logits.device)
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
