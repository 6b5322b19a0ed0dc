"""Runs plans on a GPU's stream: whoever launches a step waits for nothing, and whoever lands it only for that step.

    host    launch 1 | plan 2, launch 2 | land 1 | plan 3, launch 3 | land 2 | ...
    device           [ step 1 .................. ][ step 2 ......................... ]

What step 1 says stays on the device, where step 2 reads it. A step of decodes is a graph's replay, any other goes
operation by operation.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from kvasir_workers.kv.offload.page_mover import PageMover
from kvasir_workers.model.decoder import Decoder
from kvasir_workers.runner.batch import BatchBuilder, StepArrays, lay_out, sampled_sequences
from kvasir_workers.runner.decode_graphs import DecodeGraphs
from kvasir_workers.runner.device_copies import Homecoming
from kvasir_workers.runner.device_sampler import DeviceSampler, SampleOnItsWay
from kvasir_workers.runner.executor import Masks
from kvasir_workers.runner.paged_decoder import PagedDecoder, shows_prompts
from kvasir_workers.runner.sampler import SampledToken
from kvasir_workers.step_plan import StepPlan

Sample = Callable[[Masks | None], SampleOnItsWay]
"""Begins to sample: with the masks of the step's structured rows."""


class StreamFlight:
    """A step that the device has been told of; see `StepFlight` in device.py."""

    def __init__(self, sample: Sample | None, end: Homecoming | None) -> None:
        """sample None: it samples nothing, and is over when its end has come."""
        self._sample = sample
        self._end = end
        self._said: SampleOnItsWay | None = None

    @classmethod
    def of(cls, plan: StepPlan, sampler: DeviceSampler, logits: Tensor, positions: Tensor) -> "StreamFlight":
        """One that samples. logits, positions: as the sampler takes them, of the plan's sequences that sample."""
        sequences = sampled_sequences(plan)

        @torch.inference_mode()
        def sample(make_masks: Masks | None) -> SampleOnItsWay:
            return sampler.sample(logits, sequences, positions, make_masks() if make_masks is not None else None)

        return cls(sample, None)

    def allow(self, make_masks: Masks | None) -> None:
        if self._sample is not None and self._said is None:
            self._said = self._sample(make_masks)

    def land(self) -> list[SampledToken]:
        if self._end is not None:
            self._end.wait()
            return []
        assert self._said is not None, "a step lands when it has been allowed to sample"
        return self._said.tokens()


class StreamRunner:
    """A decoder, its pages and the device they are on; as ModelRunner, but it never waits for the device.

    graphs: of the same decoder and pages; None: every step goes operation by operation.
    """

    def __init__(
        self,
        decoder: Decoder,
        pages: Tensor,
        eos_token_ids: frozenset[int],
        max_num_seqs: int,
        graphs: DecodeGraphs | None,
        mover: PageMover | None = None,
    ) -> None:
        self._model = PagedDecoder(decoder, pages, mover)
        self._page_size, self._device = pages.shape[3], pages.device
        self._builder = BatchBuilder(self._page_size, self._device)
        self._graphs = graphs
        said = torch.zeros(max_num_seqs, dtype=torch.int64, device=self._device) if graphs is None else graphs.said
        self._sampler = DeviceSampler(eos_token_ids, decoder.spec.vocab_size, said)

    @torch.inference_mode()
    def launch(self, plan: StepPlan) -> StreamFlight:
        """Steps run in the order of their launches. One that samples must be allowed to before the next is launched."""
        step = self._builder.arrays(plan)
        self._model.prepare(plan)
        if self._graphs is not None and self._graphs.takes(step) and not shows_prompts(plan):
            logits = self._graphs.run(step)
            return StreamFlight.of(plan, self._sampler, logits, self._graphs.inputs.positions[: len(logits)])
        return self._launch_eager(plan, step)

    def _launch_eager(self, plan: StepPlan, step: StepArrays) -> StreamFlight:
        batch = lay_out(step, self._page_size, self._device)
        hidden = self._model.compute(plan, batch, self._sampler.said)
        if not len(batch.sample_rows):
            return StreamFlight(None, Homecoming((), self._device))
        return StreamFlight.of(plan, self._sampler, self._model.logits(hidden), batch.positions[batch.sample_rows])
