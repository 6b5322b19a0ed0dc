"""Runs plans through the decoder where the host itself computes."""

from functools import partial

import torch
from torch import Tensor

from kvasir_kernels.paged_cache import LayerCache
from kvasir_workers.kv.offload.page_mover import PageMover
from kvasir_workers.model.decoder import Decoder
from kvasir_workers.prompt_reader import LogitsOf
from kvasir_workers.runner.batch import BatchBuilder, StepBatch, sampled_rows
from kvasir_workers.runner.executor import Masks, StepInPlace, StepInThread, Steps
from kvasir_workers.runner.page_copies import copy_tokens
from kvasir_workers.runner.sampler import SampledToken, Sampler
from kvasir_workers.runner.sampling_rows import SampledRows
from kvasir_workers.step_plan import ScheduledSequence, StepPlan

Flight = StepInThread[list[SampledToken]] | StepInPlace[list[SampledToken]]


class ModelRunner:
    """A decoder, its pages and the device they are on.

    pages: [L, 2, N, P, K, D], keys (0) and values (1) of every layer; the caller owns the memory.
    thread: where steps run.
    mover: brings pages to host memory and back, if plans say so.
    """

    def __init__(
        self,
        decoder: Decoder,
        pages: Tensor,
        eos_token_ids: frozenset[int],
        thread: Steps[list[SampledToken]],
        mover: PageMover | None = None,
    ) -> None:
        self._decoder = decoder
        self._pages = pages
        self._caches = [LayerCache(layer[0], layer[1]) for layer in pages]
        self._cache_scales = decoder.cache_scales
        self._builder = BatchBuilder(pages.shape[3], pages.device)
        self._mover = mover
        self._sampler = Sampler(eos_token_ids)
        self._thread = thread
        self._sampled_before = torch.empty(0, dtype=torch.int64, device=pages.device)

    def launch(self, plan: StepPlan) -> Flight:
        """Steps run in the order of their launches."""
        work = partial(self._run, plan, self._builder.build(plan), sampled_rows(plan))
        return self._thread.launch(work)

    @torch.inference_mode()
    def _run(self, plan: StepPlan, batch: StepBatch, sampled: SampledRows, masks: Masks) -> list[SampledToken]:
        if self._mover is not None and plan.moves is not None:
            self._mover.move(plan.moves)
        for copy in plan.copies:
            copy_tokens(self._pages, copy, self._cache_scales)
        if batch.coming is not None:
            batch.token_ids[batch.coming.places] = self._sampled_before[batch.coming.rows]
        hidden = self._decoder(batch.token_ids, batch.positions, batch.slots, self._caches, batch.attention)
        show_prompts(plan, hidden, self._decoder.logits)
        if not sampled.sequences:
            return []
        is_all = len(batch.sample_rows) == len(hidden)
        logits = self._decoder.logits(hidden if is_all else hidden[batch.sample_rows])
        sample = self._sampler.sample(logits, sampled, masks())
        self._sampled_before = sample.token_ids
        return sample.tokens()


def shows_prompts(plan: StepPlan) -> bool:
    """Whether somebody wants to know of the hidden states of the step's prompt tokens."""
    return any(_num_shown(entry) > 0 for entry in plan.entries)


def show_prompts(plan: StepPlan, hidden: Tensor, logits_of: LogitsOf) -> None:
    """Show the step's hidden states of prompt tokens to those who want to know of them."""
    first_row = 0
    for entry in plan.entries:
        reader, num_shown = entry.sequence.prompt_reader, _num_shown(entry)
        if reader is not None and num_shown > 0:
            reader.read(hidden[first_row : first_row + num_shown], entry.start, logits_of)
        first_row += entry.num_new


def _num_shown(entry: ScheduledSequence) -> int:
    if entry.sequence.prompt_reader is None:
        return 0
    return min(entry.num_new, entry.sequence.num_prompt_tokens - entry.start)
