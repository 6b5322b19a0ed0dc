"""Decode steps of a gang's ranks as graphs, collectives and all: recorded by all ranks at once, or by none.

What each rank replays at a step follows from the step's plan, which all have. So all must have recorded the same sizes
of steps, in the same order: the collectives of a rehearsal, too, wait for each other.
"""

import logging
import time
from collections.abc import Callable
from typing import Protocol, TypeVar

import torch

from kvasir_kernels.compile_watch import COMPILE_WATCH
from kvasir_protocol.config import EngineConfig
from kvasir_protocol.errors import ConfigError, RankLost
from kvasir_workers.kv.manager import pages_for
from kvasir_workers.parallel.collectives import Collectives
from kvasir_workers.parallel.pipeline import Stage
from kvasir_workers.parallel.planned_step import PlannedStep
from kvasir_workers.resolve import uses_graphs
from kvasir_workers.runner.decode_graphs import DecodeGraphs, GraphLimits
from kvasir_workers.runner.recorder import CudaRecorder, Recorder, Work

_log = logging.getLogger(__name__)

T = TypeVar("T")


class StepwiseRecorder(Protocol):
    """Records in two steps, the first of which does the work."""

    def rehearse(self, work: Work) -> None: ...

    def capture(self, name: str, work: Work) -> Work:
        """Does the same again at each call. Waits for the device first."""
        ...


class GangRecorder:
    """One rank's: after each step it hears how that went at the others, so that none waits for one that failed."""

    def __init__(self, recorder: StepwiseRecorder, collectives: Collectives) -> None:
        self._recorder = recorder
        self._collectives = collectives

    def record(self, name: str, work: Work) -> Work:
        """Raises ConfigError at all ranks if one of them can't, RankLost if one does not come."""
        self._together(f"a rehearsal of {name}", lambda: self._recorder.rehearse(work))
        self._collectives.finish(f"a rehearsal of {name}")
        return self._together(f"a graph of {name}", lambda: self._recorder.capture(name, work))

    def _together(self, what: str, act: Callable[[], T]) -> T:
        found: list[T] = []
        failure = ""
        try:
            found.append(act())
        except RankLost:
            raise
        except Exception as error:  # whatever it is: the others must hear of it before they wait for this rank
            failure = str(error).partition("\n")[0] or type(error).__name__
        words = self._collectives.exchange(what, failure)
        failures = [f"rank {rank}: {word}" for rank, word in enumerate(words) if word]
        if failures:
            raise ConfigError(
                f"{what} failed ({'; '.join(failures)}); do without graphs: --enforce-eager", "engine.enforce_eager"
            )
        return found[0]


def make_rank_ready(stage: Stage, config: EngineConfig, max_sequence_tokens: int) -> DecodeGraphs | None:
    """What a rank needs before its first step, together with all others: its graphs; None where there are none.

    A pipeline has none: of the steps on its way the newest begins before the one before it has said anything.
    """
    device = stage.pages.device
    if device.type == "cpu":
        return None
    torch.cuda.set_device(device)  # of this thread
    COMPILE_WATCH.watch_triton()
    with COMPILE_WATCH.permit():
        is_able = stage.place.shape.pipeline_parallel_size == 1 and uses_graphs(stage.whole, device, config)
        if not all_use_graphs(stage.collectives, is_able=is_able):
            return None
        recorder = GangRecorder(CudaRecorder(device), stage.collectives)
        return record_rank_graphs(stage, config, max_sequence_tokens, recorder)


def all_use_graphs(collectives: Collectives, *, is_able: bool) -> bool:
    """Whether every rank is. They may differ: a user's kernels may be installed on one host alone."""
    words = collectives.exchange("whether steps are recorded", "yes" if is_able else "no")
    unable = [rank for rank, word in enumerate(words) if word == "no"]
    if 0 < len(unable) < len(words) and collectives.place.is_leader:
        _log.warning("no rank records its steps, since ranks %s compute operation by operation", unable)
    return not unable


def record_rank_graphs(
    stage: Stage, config: EngineConfig, max_sequence_tokens: int, recorder: Recorder
) -> DecodeGraphs:
    """The rank's graphs of decode steps; all ranks of the stage call this at the same time."""
    limits = GraphLimits(
        max_rows=config.max_num_seqs,
        max_pages=pages_for(max_sequence_tokens, stage.page_size),
        page_size=stage.page_size,
        vocab_size=stage.whole.vocab_size if stage.place.is_leader else 0,
    )
    started_at = time.perf_counter()
    graphs = DecodeGraphs(stage.decode, limits, recorder, stage.pages.device)
    seconds = time.perf_counter() - started_at
    _log.info("%s recorded %d graphs of decode steps in %.1f s", stage.place, graphs.num_graphs, seconds)
    return graphs


def is_replayed(step: PlannedStep, graphs: DecodeGraphs | None) -> bool:
    """The same at every rank: whether the step is a graph's."""
    return graphs is not None and not step.is_shown and graphs.takes(step.arrays)


def replay(stage: Stage, graphs: DecodeGraphs, step: PlannedStep) -> torch.Tensor:
    """One rank's part of a step that is a graph's: its logits, [S, V] float32, at the leader."""
    stage.copy_pages(step)
    if step.arrays.coming.size:
        stage.collectives.spread(graphs.said)
    return graphs.run(step.arrays)
