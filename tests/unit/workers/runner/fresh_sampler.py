"""One step of a sampler that remembers nothing, of sequences that know all their tokens."""

from collections.abc import Sequence

from torch import Tensor

from kvasir_workers.runner.grammar_mask import GrammarMasks, StructuredRow, make_masks
from kvasir_workers.runner.sampler import SampledToken, Sampler
from kvasir_workers.runner.sampling_rows import SampledRows
from kvasir_workers.sequence import Sequence as TokenSequence


def sample(logits: Tensor, sequences: Sequence[TokenSequence], eos_token_ids: frozenset[int]) -> list[SampledToken]:
    """logits: [R, V], changed in place; row i is sequences[i]'s."""
    masks = masks_of(sequences, eos_token_ids)
    return Sampler(eos_token_ids).sample(logits, SampledRows.of(sequences), masks).tokens()


def masks_of(sequences: Sequence[TokenSequence], eos_token_ids: frozenset[int]) -> GrammarMasks | None:
    rows = [
        StructuredRow(row, sequence.grammar, sequence.num_generated, sequence.request.sampling)
        for row, sequence in enumerate(sequences)
        if sequence.grammar is not None
    ]
    return make_masks(rows, eos_token_ids) if rows else None
