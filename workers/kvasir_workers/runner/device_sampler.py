"""From logits to tokens where the host does not know the last token yet, and waits for nothing.

What comes out is what sampler.py gives: the noise of a token is a pure function of (seed, choice, position).
"""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from kvasir_kernels.sampling_dispatch import largest_logit, sample_tokens
from kvasir_protocol.events import TokenLogprobs
from kvasir_workers.runner.device_copies import Homecoming, Wait, upload
from kvasir_workers.runner.device_rows import DeviceRows
from kvasir_workers.runner.grammar_mask import GrammarMasks, apply_masks
from kvasir_workers.runner.sampler import SampledToken
from kvasir_workers.runner.seen_ledger import SeenLedger
from kvasir_workers.runner.token_scores import measure_scores, read_scores
from kvasir_workers.sequence import Sequence as TokenSequence


class SampleOnItsWay:
    """What a step said, as far as the device is."""

    def __init__(self, home: Homecoming, rows: DeviceRows) -> None:
        """home: of the token ids, of their logits, and of the scores that measure_scores gives."""
        self._home = home
        self._scored = np.flatnonzero(rows.table["is_scored"]).tolist()
        self._num_top = rows.num_top

    def tokens(self) -> list[SampledToken]:
        """Waits for it."""
        token_ids, logits, *tensors = self._home.wait()
        found = read_scores(tensors, self._num_top) if tensors else []
        scores: dict[int, TokenLogprobs] = dict(zip(self._scored, found, strict=True))
        chosen = zip(token_ids.tolist(), logits.tolist(), strict=True)
        return [SampledToken(token_id, scores.get(row), logit) for row, (token_id, logit) in enumerate(chosen)]


class DeviceSampler:
    """Samples step after step. What it says stays in said, too, [S] int64, row by row, for the step that follows."""

    def __init__(
        self,
        eos_token_ids: frozenset[int],
        vocab_size: int,
        said: Tensor,
        wait_for_event: Wait = torch.cuda.Event.synchronize,
    ) -> None:
        self.said = said
        self._wait_for_event = wait_for_event
        self._eos_token_ids = eos_token_ids
        self._ledger = SeenLedger(len(said), vocab_size, said.device)
        self._rows: DeviceRows | None = None

    def sample(
        self, logits: Tensor, sequences: tuple[TokenSequence, ...], positions: Tensor, masks: GrammarMasks | None
    ) -> SampleOnItsWay:
        """The next token of each sequence.

        logits: [R, V] float32, changed in place. positions: [R] int64, where each sequence's last token stands.
        masks: of structured rows. Sequences with bad words must know all their tokens.
        """
        rows = self._rows
        if rows is None or rows.sequences != sequences:
            rows = self._rows = DeviceRows.of(sequences, self._eos_token_ids, logits.device, rows)
        num_generated = positions - rows.offsets
        raw_logprobs = torch.log_softmax(logits[rows.scored], dim=-1) if rows.num_top else None
        if masks is not None:
            apply_masks(logits, masks)
        self._edit(logits, rows, num_generated)
        if rows.is_any_random:
            token_ids, chosen = sample_tokens(logits, replace(rows.rules, positions=num_generated))
        else:
            token_ids, chosen = largest_logit(logits)
        self._ledger.remember(token_ids)
        self.said[: len(token_ids)] = token_ids
        scores = [] if raw_logprobs is None else measure_scores(raw_logprobs, token_ids[rows.scored], rows.num_top)
        home = Homecoming([token_ids, chosen, *scores], token_ids.device, self._wait_for_event)
        return SampleOnItsWay(home, rows)

    def _edit(self, logits: Tensor, rows: DeviceRows, num_generated: Tensor) -> None:
        """In vLLM's order, as logit_edits does."""
        rows.edits.forbid(logits, num_generated)
        if rows.bad_word_rows:
            _forbid_bad_words(logits, rows)
        rows.edits.add_biases(logits)
        self._ledger.penalise(logits, rows)


def _forbid_bad_words(logits: Tensor, rows: DeviceRows) -> None:
    """The last token of each bad word whose other tokens were just generated."""
    pairs = [
        (row, word[-1])
        for row in rows.bad_word_rows
        for word in rows.sequences[row].request.sampling.bad_word_token_ids
        if _ends_with(rows.sequences[row], word[:-1])
    ]
    if pairs:
        columns = np.array(pairs, dtype=np.int64).T.copy()
        forbidden_rows, token_ids = upload([columns[0], columns[1]], logits.device)
        logits[forbidden_rows, token_ids] = -torch.inf


def _ends_with(sequence: TokenSequence, token_ids: Sequence[int]) -> bool:
    """Whether its answer does."""
    num = len(token_ids)
    return num <= sequence.num_generated and sequence.token_ids[sequence.num_tokens - num :] == list(token_ids)
