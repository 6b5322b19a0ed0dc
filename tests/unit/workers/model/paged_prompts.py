"""A decoder fed step by step through pages in random order, as the engine would feed it."""

import torch
from torch import Tensor

from kvasir_kernels.paged_cache import AttentionBatch, LayerCache
from kvasir_workers.model.decoder import Decoder

PAGE_SIZE = 4
PAGES_PER_SEQUENCE = 12


class PagedPrompts:
    """The caches of a few sequences; every slot is NaN until it is written."""

    def __init__(self, decoder: Decoder, num_sequences: int, seed: int = 0) -> None:
        self.decoder = decoder
        spec = decoder.spec
        num_pages = num_sequences * PAGES_PER_SEQUENCE
        shape = (num_pages, PAGE_SIZE, spec.num_kv_heads, spec.head_dim)
        self.caches = [
            LayerCache(torch.full(shape, torch.nan), torch.full(shape, torch.nan)) for _ in range(spec.num_layers)
        ]
        order = torch.randperm(num_pages, generator=torch.Generator().manual_seed(seed))
        self.page_tables = order.view(num_sequences, PAGES_PER_SEQUENCE)
        self.num_computed = [0] * num_sequences

    @torch.inference_mode()
    def step(self, new_tokens: dict[int, list[int]]) -> dict[int, Tensor]:
        """Feed tokens to sequences by index, and return the logits of each of them: [T, V] per sequence."""
        order = sorted(new_tokens, key=lambda index: len(new_tokens[index]) != 1)
        query_lens = tuple(len(new_tokens[index]) for index in order)
        starts = [self.num_computed[index] for index in order]
        ends = [start + length for start, length in zip(starts, query_lens, strict=True)]
        positions = [torch.arange(start, end) for start, end in zip(starts, ends, strict=True)]
        slots = [self._slots(index, rows) for index, rows in zip(order, positions, strict=True)]
        batch = AttentionBatch(query_lens, tuple(ends), self.page_tables[order], query_lens.count(1))
        token_ids = torch.tensor([token for index in order for token in new_tokens[index]])
        hidden = self.decoder(token_ids, torch.cat(positions), torch.cat(slots), self.caches, batch)
        for index, end in zip(order, ends, strict=True):
            self.num_computed[index] = end
        return dict(zip(order, torch.split(self.decoder.logits(hidden), list(query_lens)), strict=True))

    def _slots(self, index: int, positions: Tensor) -> Tensor:
        return self.page_tables[index, positions // PAGE_SIZE] * PAGE_SIZE + positions % PAGE_SIZE
