"""What the attention operations read and write: one layer's pages, and which of them each sequence sees."""

from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from kvasir_kernels.paged_attention.work import Cut, Work

MAX_GPU_HEAD_DIM = 256
"""Of attention on a GPU: beyond it a tile's keys, values and outputs outgrow registers and shared memory."""


@dataclass(frozen=True, slots=True)
class CacheScales:
    """What the numbers of a cache of 8 bits are multiplied with when they are read; float32.

    key, value: [K], one for each head, known before; or [N, P, K], one for each head of each token, which the write of
    that token finds: the largest number of the head becomes the largest of the dtype.
    """

    key: Tensor
    value: Tensor


@dataclass(frozen=True, slots=True)
class LayerCache:
    """One layer's keys and values, cut into pages; the page pool owns the memory.

    key, value: [N, P, K, D], contiguous, in the model's dtype, or with scales in float8_e4m3fn or int8.
    Slot `page * P + offset` is one token's place.
    """

    key: Tensor
    value: Tensor
    scales: CacheScales | None = None

    @property
    def scaled_by(self) -> Literal["nothing", "heads", "tokens"]:
        """What has scales of its own: each head, or each head of each token."""
        if self.scales is None:
            return "nothing"
        return "heads" if self.scales.key.dim() == 1 else "tokens"

    @property
    def scale_tensors(self) -> tuple[Tensor | None, Tensor | None]:
        """Of keys and of values."""
        return (None, None) if self.scales is None else (self.scales.key, self.scales.value)


@dataclass(frozen=True, slots=True)
class ScoreChanges:
    """What some models do with the scores of a query before and in softmax.

    soft_cap: a score s becomes soft_cap * tanh(s / soft_cap) (Gemma 2).
    sinks: [H] float32, the score of one more key of each head, whose value is zero (Xiao et al., 2023).
    """

    soft_cap: float | None = None
    sinks: Tensor | None = None


@dataclass(frozen=True, slots=True)
class AttentionBatch:
    """Which tokens this step adds to each of the S sequences, and where their pages are.

    query_lens: new tokens per sequence; the query rows are packed in this order and sum to T.
    context_lens: tokens visible at the end of the step per sequence, cached and new.
    page_tables: [S, M] int64, the pages of each sequence in order, padded with 0.
    num_decodes: the first so many sequences bring exactly one token each.
    lengths: [2, S] int64 on the host, query_lens and context_lens once more, for kernels that read memory.
    work: for GPU kernels, how they cut this step; the first layer fills it in, the others find it.
    """

    query_lens: tuple[int, ...]
    context_lens: tuple[int, ...]
    page_tables: Tensor
    num_decodes: int
    lengths: Tensor = field(init=False, repr=False)
    work: dict[Cut, Work] = field(default_factory=dict, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        assert len(self.query_lens) == len(self.context_lens) == self.page_tables.shape[0], (
            f"{len(self.query_lens)} query_lens, {len(self.context_lens)} context_lens and "
            f"{self.page_tables.shape[0]} page tables must describe the same sequences"
        )
        assert all(length == 1 for length in self.query_lens[: self.num_decodes]), (
            f"the first {self.num_decodes} sequences must bring one token each, not {self.query_lens}"
        )
        assert all(1 <= query <= context for query, context in zip(self.query_lens, self.context_lens, strict=True)), (
            f"each context {self.context_lens} must hold its new tokens {self.query_lens}"
        )
        # Not torch.tensor, which takes three times as long to read tuples.
        lengths = np.array((self.query_lens, self.context_lens), dtype=np.int64)
        object.__setattr__(self, "lengths", torch.from_numpy(lengths))


@dataclass(frozen=True, slots=True)
class PaddedDecodes:
    """One token for each of S rows, some of them padding, whose lengths only the device knows: what graphs replay.

    context_lens: [S] int32, tokens visible to each row; 0 is padding, which sees nothing and whose result is undefined.
    page_tables, work: as in AttentionBatch.
    """

    context_lens: Tensor
    page_tables: Tensor
    work: dict[Cut, Work] = field(default_factory=dict, init=False, repr=False, compare=False)


StepAttention = AttentionBatch | PaddedDecodes
