"""Gangs whose ranks are threads of this process: everything is real but the processes."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from queue import SimpleQueue
from threading import Thread
from typing import Self

import torch

from kvasir.demo import demo_model_path
from kvasir_protocol.config import EngineConfig, ModelConfig, QuantizationName
from kvasir_protocol.messages import FinishStep
from kvasir_protocol.wire import encode
from kvasir_workers.engine import Engine
from kvasir_workers.idle_work import IdleWork, nothing_to_do
from kvasir_workers.load import LeaderSeat, LoadedModel, build_engine, load_leader
from kvasir_workers.memory import page_bytes
from kvasir_workers.model.loader import load_spec
from kvasir_workers.parallel.collectives import Meeting
from kvasir_workers.parallel.gang_runner import Follower
from kvasir_workers.parallel.links import nowhere
from kvasir_workers.parallel.load_rank import load_rank, plan_rank
from kvasir_workers.parallel.mesh import GangShape, RankPlace
from kvasir_workers.parallel.rank_graphs import record_rank_graphs
from kvasir_workers.parallel.shard import cut_model
from kvasir_workers.parallel.torch_groups import memory_store
from kvasir_workers.runner.recorder import Recorder

DEADLINE_S = 20.0
DEMO_MODEL = demo_model_path()


class QueueSender:
    """Plans go through queues, as bytes."""

    def __init__(self, ranks: range) -> None:
        self.queues: dict[int, SimpleQueue[bytes | None]] = {rank: SimpleQueue() for rank in ranks}
        self.frames: list[bytes] = []

    def send(self, frame: bytes) -> None:
        self.frames.append(frame)
        for queue in self.queues.values():
            queue.put(frame)

    def close(self) -> None:
        for queue in self.queues.values():
            queue.put(None)


class QueueReceiver:
    """One follower's end."""

    def __init__(self, queue: SimpleQueue[bytes | None]) -> None:
        self._queue = queue

    def receive(self, look: Callable[[], None] = nowhere, idle_work: IdleWork = nothing_to_do) -> bytes | None:
        return self._queue.get()


class ThreadGang:
    """A leader's model, loaded here, and a thread for each follower. Pages are NaN until they are written."""

    def __init__(
        self,
        path: Path,
        shape: GangShape,
        config: EngineConfig,
        followers_config: EngineConfig | None = None,
        quantization: QuantizationName | None = None,
        recorders: Sequence[Recorder] = (),
    ) -> None:
        """followers_config: if theirs is another one. recorders: of the ranks, by rank, if they are to replay steps."""
        self._model = ModelConfig(path=str(path), served_name="m", dtype="float32", quantization=quantization)
        self._config = config
        self._followers_config = followers_config or config
        self._meeting = Meeting(store=memory_store(), deadline_s=DEADLINE_S)
        self._recorders = recorders
        self.failures: dict[int, BaseException] = {}
        self._pages_of_followers: dict[int, torch.Tensor] = {}
        self.sender = QueueSender(range(1, shape.num_ranks))
        self._threads = [Thread(target=self._follow, args=(RankPlace(shape, rank),)) for rank in self.sender.queues]
        for thread in self._threads:
            thread.start()
        self.loaded: LoadedModel = load_leader(self._model, config, LeaderSeat(shape, self._meeting, self.sender))
        spoil(self.loaded.pages)
        if recorders and self.loaded.lead is not None:
            longest = self.loaded.limits.max_sequence_tokens
            graphs = record_rank_graphs(self.loaded.lead.stage, config, longest, recorders[0])
            self.loaded = replace(self.loaded, graphs=graphs)

    def _follow(self, place: RankPlace) -> None:
        try:
            rank = load_rank(plan_rank(self._model, self._followers_config, place), self._meeting)
            spoil(rank.stage.pages)
            self._pages_of_followers[place.rank] = rank.stage.pages
            graphs = None
            if self._recorders:
                longest = rank.memory.max_sequence_tokens
                recorder = self._recorders[place.rank]
                graphs = record_rank_graphs(rank.stage, self._followers_config, longest, recorder)
            Follower(rank.stage, graphs).serve(QueueReceiver(self.sender.queues[place.rank]))
            rank.stage.close()
        except BaseException as error:
            self.failures[place.rank] = error

    def finish(self) -> None:
        """What a leader says when it takes a step's rows, if anybody is to help it."""
        shape = self.loaded.lead.stage.place.shape if self.loaded.lead is not None else GangShape()
        if shape.pipeline_parallel_size > 1:
            assert self.loaded.lead is not None
            self.sender.send(encode(FinishStep(number=self.loaded.lead.stage.next_plan())))

    def pages(self) -> list[torch.Tensor]:
        """Of all ranks, once a step has begun."""
        return [self.loaded.pages, *self._pages_of_followers.values()]

    def engine(self) -> Engine:
        return build_engine(self.loaded, self._config)

    def __enter__(self) -> Self:
        return self

    def end(self) -> dict[int, BaseException]:
        """Let go of the followers, and say of what they have died."""
        assert self.loaded.lead is not None
        self.loaded.lead.close()
        for thread in self._threads:
            thread.join()
        return self.failures

    def __exit__(self, *_: object) -> None:
        assert not self.end(), self.failures


def spoil(pages: torch.Tensor) -> None:
    """Let nobody find a number in pages that were not written."""
    pages.fill_(127 if pages.dtype == torch.int8 else torch.nan)


def gang_config(path: Path, shape: GangShape, num_pages: int, page_size: int = 4, **settings: object) -> EngineConfig:
    """So that the gang has just so many pages."""
    spec = load_spec(path)
    shards = [cut_model(spec, RankPlace(shape, rank)) for rank in range(shape.num_ranks)]
    total = sum(page_bytes(shard.local, page_size, torch.float32) for shard in shards)
    return EngineConfig(device="cpu", page_size=page_size, kv_cache_bytes=num_pages * total, **settings)  # type: ignore[arg-type]
