"""Both ends of a gang's wire: the leader runs plans for an engine, and a follower does as it is told.

gang_stream.py has the leader of GPUs that share every layer.
"""

from functools import partial

import torch
from torch import Tensor

from kvasir_kernels.compile_watch import COMPILE_WATCH, CompileWatch
from kvasir_protocol.errors import RankLost, WireError
from kvasir_protocol.messages import EndWarmUp, FinishStep, RunStep
from kvasir_protocol.wire import decode, encode
from kvasir_workers.idle_work import IdleWork, nothing_to_do
from kvasir_workers.parallel.links import PlanReceiver, PlanSender
from kvasir_workers.parallel.mesh import LEADER
from kvasir_workers.parallel.pipeline import Stage
from kvasir_workers.parallel.planned_step import PlannedStep, from_message, to_message
from kvasir_workers.parallel.rank_graphs import is_replayed, replay
from kvasir_workers.runner.batch import BatchBuilder, sampled_rows
from kvasir_workers.runner.decode_graphs import DecodeGraphs
from kvasir_workers.runner.executor import CallersThread, Masks, StepInPlace, StepInThread, Steps
from kvasir_workers.runner.sampler import SampledToken, Sampler
from kvasir_workers.runner.sampling_rows import SampledRows
from kvasir_workers.step_plan import StepPlan

Flight = StepInThread[list[SampledToken]] | StepInPlace[list[SampledToken]]


class GangRunner:
    """The leader: tells the others each step's plan in one message, computes its own part, and samples.

    thread: as in ModelRunner. A pipeline's is the caller's: the leader computes its part of a step when it is launched,
    and samples when it is landed; meanwhile the other stages compute.
    """

    def __init__(
        self,
        stage: Stage,
        followers: PlanSender,
        eos_token_ids: frozenset[int],
        thread: Steps[list[SampledToken]],
    ) -> None:
        shape = stage.place.shape
        assert stage.place.is_leader, f"{stage.place} leads nobody"
        assert isinstance(thread, CallersThread) or shape.pipeline_parallel_size == 1, "a pipeline overlaps as it is"
        self._stage = stage
        self._followers = followers
        self._has_pipeline = shape.pipeline_parallel_size > 1
        self._has_helpers = shape.tensor_parallel_size > 1
        self._builder = BatchBuilder(stage.page_size, stage.pages.device)
        self._sampler = Sampler(eos_token_ids)
        self._thread = thread
        self._sampled_before = torch.empty(0, dtype=torch.int64, device=stage.pages.device)

    def launch(self, plan: StepPlan) -> Flight:
        """Steps run in the order of their launches. Raises RankLost, as landing does, if the gang is broken."""
        step = PlannedStep.of(plan, self._builder.arrays(plan))
        sampled = sampled_rows(plan)
        if self._has_pipeline:
            self._begin(step)
            return self._thread.launch(partial(self._end, plan, step, sampled))
        return self._thread.launch(partial(self._run, plan, step, sampled))

    def _run(self, plan: StepPlan, step: PlannedStep, sampled: SampledRows, masks: Masks) -> list[SampledToken]:
        self._begin(step)
        return self._end(plan, step, sampled, masks)

    @torch.inference_mode()
    def _begin(self, step: PlannedStep) -> None:
        self._followers.send(encode(to_message(step, self._stage.page_size, self._stage.next_plan())))
        self._stage.run(step, self._sampled_before)

    @torch.inference_mode()
    def _end(self, plan: StepPlan, step: PlannedStep, sampled: SampledRows, masks: Masks) -> list[SampledToken]:
        if self._has_pipeline and self._has_helpers:
            self._followers.send(encode(FinishStep(number=self._stage.next_plan())))
        logits = final_logits(self._stage, plan, step)
        if logits is None:
            self._stage.collectives.finish("a step")  # whoever lands it may hand its pages over
            return []
        sample = self._sampler.sample(logits, sampled, masks())
        self._sampled_before = sample.token_ids
        self._stage.collectives.finish("a step")
        return sample.tokens()


def final_logits(stage: Stage, plan: StepPlan, step: PlannedStep) -> Tensor | None:
    """On the leader, what is left of the oldest step: the logits of the rows that sample, [R, V] float32, if any do.
    Shows the step's hidden states of prompt tokens to those who want to know of them."""
    hidden = stage.take_final(step)
    logits = stage.vocabulary.logits(hidden[: step.num_sampled]) if step.num_sampled else None
    if step.is_shown:
        first_row = step.num_sampled
        for entry, num_rows in zip(plan.entries, step.num_shown.tolist(), strict=True):
            reader = entry.sequence.prompt_reader
            if reader is not None and num_rows:
                reader.read(hidden[first_row : first_row + num_rows], entry.start, stage.ask_logits)
                first_row += num_rows
        stage.end_asking()
    return logits


class Follower:
    """Any other rank: computes its part of each step that it is told of, from a graph where the leader does.

    watch: of what is compiled, which may be other kernels than the leader's where it has other layers. idle_work: for
    when no steps are to be run.
    """

    def __init__(
        self,
        stage: Stage,
        graphs: DecodeGraphs | None = None,
        watch: CompileWatch = COMPILE_WATCH,
        idle_work: IdleWork = nothing_to_do,
    ) -> None:
        self._stage = stage
        self._idle_work = idle_work
        self._graphs = graphs
        self._watch = watch
        self._unfinished: list[PlannedStep] = []
        self._has_pipeline = stage.place.shape.pipeline_parallel_size > 1

    def serve(self, leader: PlanReceiver) -> None:
        """Return when the leader is gone. Raises RankLost when the gang is broken or a plan did not come, WireError for
        a bad message."""
        while (frame := leader.receive(self._stage.collectives.look, self._idle_work)) is not None:
            self.follow(frame)

    @torch.inference_mode()
    def follow(self, frame: bytes) -> None:
        """Do what one message says."""
        match decode(frame):
            case RunStep(number=number) as message:
                self._expect(number)
                self._run(from_message(message, self._stage.page_size))
            case FinishStep(number=number):
                self._expect(number)
                if self._stage.place.is_first_stage:
                    self._finish()
            case EndWarmUp():
                self._watch.arm()
            case message:
                raise WireError(f"a rank has no use for {type(message).__name__}")
        self._stage.collectives.watch_step()

    def _run(self, step: PlannedStep) -> None:
        if self._graphs is not None and is_replayed(step, self._graphs):
            replay(self._stage, self._graphs, step)
            return
        self._stage.run(step)
        if self._stage.place.is_first_stage:
            self._unfinished.append(step)
            if not self._has_pipeline:
                self._finish()

    def _expect(self, number: int) -> None:
        """Without one of the plans, or with one of them twice, the ranks would compute different steps."""
        expected = self._stage.next_plan()
        if number != expected:
            raise RankLost(f"{self._stage.place} was told plan {number} when plan {expected} was due", (LEADER,))

    def _finish(self) -> None:
        step = self._unfinished.pop(0)
        hidden = self._stage.take_final(step)
        if step.num_sampled:
            self._stage.vocabulary.logits(hidden[: step.num_sampled])
        if step.is_shown:
            self._stage.help_with_logits()
