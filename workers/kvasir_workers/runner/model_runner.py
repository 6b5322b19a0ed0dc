"""Runs plans through the decoder."""

import torch
from torch import Tensor

from kvasir_kernels.paged_cache import LayerCache
from kvasir_workers.kv.manager import PageCopy
from kvasir_workers.model.decoder import Decoder
from kvasir_workers.runner.batch import build_batch
from kvasir_workers.runner.sampler import SampledToken, Sampler
from kvasir_workers.scheduler import StepPlan


class ModelRunner:
    """A decoder, its pages and the device they are on.

    pages: [L, 2, N, P, K, D], keys (0) and values (1) of every layer; the caller owns the memory.
    """

    def __init__(self, decoder: Decoder, pages: Tensor, eos_token_ids: frozenset[int]) -> None:
        self._decoder = decoder
        self._pages = pages
        self._caches = [LayerCache(layer[0], layer[1]) for layer in pages]
        self._page_size = pages.shape[3]
        self._device = pages.device
        self._sampler = Sampler(eos_token_ids)

    @torch.inference_mode()
    def run(self, plan: StepPlan) -> list[SampledToken]:
        for copy in plan.copies:
            self._copy_tokens(copy)
        batch = build_batch(plan, self._page_size, self._device)
        hidden = self._decoder(batch.token_ids, batch.positions, batch.slots, self._caches, batch.attention)
        self._read_prompts(plan, hidden)
        if not batch.sampled:
            return []
        logits = self._decoder.logits(hidden[batch.sample_rows])
        return self._sampler.sample(logits, batch.sampled)

    def _read_prompts(self, plan: StepPlan, hidden: Tensor) -> None:
        """Show the step's hidden states of prompt tokens to those who want to know of them."""
        start = 0
        for entry in plan.entries:
            sequence, end = entry.sequence, start + entry.num_new
            num_prompt = min(entry.num_new, sequence.num_prompt_tokens - sequence.num_computed)
            if sequence.prompt_reader is not None and num_prompt > 0:
                states = hidden[start : start + num_prompt]
                sequence.prompt_reader.read(states, sequence.num_computed, self._decoder.logits)
            start = end

    def _copy_tokens(self, copy: PageCopy) -> None:
        """One by one, since many at once would need memory for all of them in between."""
        self._pages[:, :, copy.target, : copy.num_tokens] = self._pages[:, :, copy.source, : copy.num_tokens]
