"""Runs plans through the decoder where the host itself computes."""

from functools import partial

import torch
from torch import Tensor

from kvasir_workers.kv.offload.page_mover import PageMover
from kvasir_workers.model.decoder import Decoder
from kvasir_workers.runner.batch import BatchBuilder, StepBatch, sampled_rows
from kvasir_workers.runner.executor import Masks, StepInPlace, StepInThread, Steps
from kvasir_workers.runner.paged_decoder import PagedDecoder
from kvasir_workers.runner.sampler import SampledToken, Sampler
from kvasir_workers.runner.sampling_rows import SampledRows
from kvasir_workers.step_plan import StepPlan

Flight = StepInThread[list[SampledToken]] | StepInPlace[list[SampledToken]]


class ModelRunner:
    """A decoder, its pages and the device they are on; pages and mover: as in PagedDecoder. thread: where steps run."""

    def __init__(
        self,
        decoder: Decoder,
        pages: Tensor,
        eos_token_ids: frozenset[int],
        thread: Steps[list[SampledToken]],
        mover: PageMover | None = None,
    ) -> None:
        self._model = PagedDecoder(decoder, pages, mover)
        self._builder = BatchBuilder(pages.shape[3], pages.device)
        self._sampler = Sampler(eos_token_ids)
        self._thread = thread
        self._sampled_before = torch.empty(0, dtype=torch.int64, device=pages.device)

    def launch(self, plan: StepPlan) -> Flight:
        """Steps run in the order of their launches."""
        work = partial(self._run, plan, self._builder.build(plan), sampled_rows(plan))
        return self._thread.launch(work)

    @torch.inference_mode()
    def _run(self, plan: StepPlan, batch: StepBatch, sampled: SampledRows, masks: Masks) -> list[SampledToken]:
        self._model.prepare(plan)
        hidden = self._model.compute(plan, batch, self._sampled_before)
        if not sampled.sequences:
            return []
        sample = self._sampler.sample(self._model.logits(hidden), sampled, masks())
        self._sampled_before = sample.token_ids
        return sample.tokens()
