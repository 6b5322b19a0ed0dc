"""A decoder and its pages: what a step does there before anything is sampled, wherever it runs."""

from torch import Tensor

from kvasir_kernels.paged_cache import LayerCache
from kvasir_workers.kv.offload.page_mover import PageMover
from kvasir_workers.model.decoder import Decoder
from kvasir_workers.runner.batch import StepBatch
from kvasir_workers.runner.page_copies import copy_tokens
from kvasir_workers.step_plan import ScheduledSequence, StepPlan


class PagedDecoder:
    """Of a whole model. pages: [L, 2, N, P, K, D], keys (0) and values (1) of every layer; the caller owns the memory.

    mover: brings pages to host memory and back, if plans say so.
    """

    def __init__(self, decoder: Decoder, pages: Tensor, mover: PageMover | None = None) -> None:
        self._decoder = decoder
        self._pages = pages
        self._caches = [LayerCache(layer[0], layer[1]) for layer in pages]
        self._cache_scales = decoder.cache_scales
        self._mover = mover

    def prepare(self, plan: StepPlan) -> None:
        """Move and copy pages as the plan says: to be done before the step is computed."""
        if self._mover is not None and plan.moves is not None:
            self._mover.move(plan.moves)
        for copy in plan.copies:
            copy_tokens(self._pages, copy, self._cache_scales)

    def compute(self, plan: StepPlan, batch: StepBatch, said: Tensor) -> Tensor:
        """The last hidden states of the tokens after which one is sampled, [R, E].

        Who wants to know of a prompt has then seen its hidden states, which is when all tokens' are computed.

        batch: the plan's, whose coming tokens are filled in. said: [R] int64, what the step before sampled.
        """
        if batch.coming is not None:
            batch.token_ids[batch.coming.places] = said[batch.coming.rows]
        step = batch.token_ids, batch.positions, batch.slots, self._caches, batch.attention
        if not shows_prompts(plan):
            sampled: Tensor = self._decoder(*step, wanted=batch.sample_rows)
            return sampled
        hidden: Tensor = self._decoder(*step)
        self._show_prompts(plan, hidden)
        return hidden[batch.sample_rows]

    def logits(self, hidden: Tensor) -> Tensor:
        """Return the next-token logits of `hidden` [R, E]: [R, V] float32."""
        return self._decoder.logits(hidden)

    def _show_prompts(self, plan: StepPlan, hidden: Tensor) -> None:
        first_row = 0
        for entry in plan.entries:
            reader, num_shown = entry.sequence.prompt_reader, _num_shown(entry)
            if reader is not None and num_shown > 0:
                reader.read(hidden[first_row : first_row + num_shown], entry.start, self.logits)
            first_row += entry.num_new


def shows_prompts(plan: StepPlan) -> bool:
    """Whether somebody wants to know of the hidden states of the step's prompt tokens."""
    return any(_num_shown(entry) > 0 for entry in plan.entries)


def _num_shown(entry: ScheduledSequence) -> int:
    if entry.sequence.prompt_reader is None:
        return 0
    return min(entry.num_new, entry.sequence.num_prompt_tokens - entry.start)
