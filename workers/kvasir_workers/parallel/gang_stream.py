"""The leader of a gang of GPUs that share every layer: it launches steps and waits for none, as a single GPU does.

What a step says stays on the leader's device, and goes from there to the others when the next step needs it. A step of
decodes is the replay of one graph on each rank, any other goes operation by operation. gang_runner.py has the others'
side, and the leader of CPUs and of pipelines.
"""

import torch

from kvasir_protocol.wire import encode
from kvasir_workers.parallel.gang_runner import final_logits
from kvasir_workers.parallel.links import PlanSender
from kvasir_workers.parallel.pipeline import Stage
from kvasir_workers.parallel.planned_step import PlannedStep, to_message
from kvasir_workers.parallel.rank_graphs import is_replayed, replay
from kvasir_workers.runner.batch import BatchBuilder
from kvasir_workers.runner.decode_graphs import DecodeGraphs
from kvasir_workers.runner.device_copies import Homecoming, upload
from kvasir_workers.runner.device_sampler import DeviceSampler
from kvasir_workers.runner.stream_runner import StreamFlight
from kvasir_workers.step_plan import StepPlan


class GangStreamRunner:
    """As StreamRunner, with a part of each step. graphs: of the stage; None where no rank has any."""

    def __init__(
        self,
        stage: Stage,
        followers: PlanSender,
        eos_token_ids: frozenset[int],
        max_num_seqs: int,
        graphs: DecodeGraphs | None,
    ) -> None:
        assert stage.place.is_leader, f"{stage.place} leads nobody"
        self._stage = stage
        self._followers = followers
        self._graphs = graphs
        self._device = stage.pages.device
        self._wait_for_event = stage.collectives.wait_for
        self._builder = BatchBuilder(stage.page_size, self._device)
        said = torch.zeros(max_num_seqs, dtype=torch.int64, device=self._device) if graphs is None else graphs.said
        self._sampler = DeviceSampler(eos_token_ids, stage.whole.vocab_size, said, self._wait_for_event)

    @torch.inference_mode()
    def launch(self, plan: StepPlan) -> StreamFlight:
        """Steps run in the order of their launches. One that samples must be allowed to before the next is launched.

        Landing raises RankLost if the device waits for another rank for longer than the deadline.
        """
        step = PlannedStep.of(plan, self._builder.arrays(plan))
        self._followers.send(encode(to_message(step, self._stage.page_size, self._stage.next_plan())))
        if self._graphs is not None and is_replayed(step, self._graphs):
            logits = replay(self._stage, self._graphs, step)
            return StreamFlight.of(plan, self._sampler, logits, self._graphs.inputs.positions[: len(logits)])
        return self._launch_eager(plan, step)

    def _launch_eager(self, plan: StepPlan, step: PlannedStep) -> StreamFlight:
        self._stage.run(step, self._sampler.said)
        logits = final_logits(self._stage, plan, step)
        if logits is None:
            return StreamFlight(None, Homecoming((), self._device, self._wait_for_event))
        last = (step.arrays.starts + step.arrays.counts - 1)[step.arrays.samples]
        (positions,) = upload([last], self._device)
        return StreamFlight.of(plan, self._sampler, logits, positions)
