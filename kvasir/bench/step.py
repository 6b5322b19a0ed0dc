"""What the host does for each step of the engine: planning, laying out the batch, telling what came.

The model is a stub, so that nothing else is measured: scheduler, pages, prefix tree and batch tensors are the real
ones, and every sequence decodes one token a step.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from statistics import median, quantiles

import torch

from kvasir_protocol.config import EngineConfig
from kvasir_protocol.ids import RequestId
from kvasir_protocol.request import GenerationRequest, SamplingParams
from kvasir_workers.engine import Engine
from kvasir_workers.kv.manager import KvManager, pages_for
from kvasir_workers.request_check import EngineLimits
from kvasir_workers.runner.batch import BatchBuilder, sampled_rows
from kvasir_workers.runner.executor import CallersThread, DeviceThread, Masks, StepInPlace, StepInThread, Steps
from kvasir_workers.runner.sampler import SampledToken
from kvasir_workers.step_plan import StepPlan

VOCAB_SIZE = 32_000
PAGE_SIZE = 16

NUM_WARM_UP_STEPS = 20


@dataclass(frozen=True, slots=True, kw_only=True)
class StepCost:
    """Microseconds. host_us, host_p90_us: CPU time of a step, without the device. plain_us, overlapped_us: from one
    step to the next with a device that takes device_us, in the plain and in the overlapped loop."""

    num_sequences: int
    host_us: float
    host_p90_us: float
    device_us: float
    plain_us: float
    overlapped_us: float


@dataclass(frozen=True, slots=True, kw_only=True)
class StepBench:
    """prompt_tokens: of each sequence, before it decodes."""

    num_steps: int = 200
    prompt_tokens: int = 512
    device_s: float = 0.005

    def measure(self, num_sequences: int) -> StepCost:
        """Steady decoding of so many sequences."""
        host = self._seconds_per_step(num_sequences, overlap=False, device_s=0.0)
        plain = self._seconds_per_step(num_sequences, overlap=False, device_s=self.device_s)
        overlapped = self._seconds_per_step(num_sequences, overlap=True, device_s=self.device_s)
        return StepCost(
            num_sequences=num_sequences,
            host_us=1e6 * median(host),
            host_p90_us=1e6 * quantiles(host, n=10)[-1],
            device_us=1e6 * self.device_s,
            plain_us=1e6 * median(plain),
            overlapped_us=1e6 * median(overlapped),
        )

    def _seconds_per_step(self, num_sequences: int, *, overlap: bool, device_s: float) -> Sequence[float]:
        engine = self._engine(num_sequences, overlap=overlap, device_s=device_s)
        num_decoded = NUM_WARM_UP_STEPS + self.num_steps + 1
        for request in self._requests(num_sequences, num_decoded):
            engine.add(request)
        while engine.num_waiting or engine.counters().computed_prompt_tokens < num_sequences * self.prompt_tokens:
            engine.step()
        for _ in range(NUM_WARM_UP_STEPS):
            engine.step()
        clock = time.perf_counter if device_s else time.thread_time
        return [_seconds(engine.step, clock) for _ in range(self.num_steps)]

    def _engine(self, num_sequences: int, *, overlap: bool, device_s: float) -> Engine:
        longest = self.prompt_tokens + NUM_WARM_UP_STEPS + self.num_steps + 2
        config = EngineConfig(
            page_size=PAGE_SIZE,
            max_num_seqs=num_sequences,
            max_num_batched_tokens=max(num_sequences, 8192),
            max_waiting_requests=None,
            overlap=overlap,
        )
        kv = KvManager(num_sequences * pages_for(longest, PAGE_SIZE), PAGE_SIZE)
        limits = EngineLimits(max_sequence_tokens=longest, vocab_size=VOCAB_SIZE, eos_token_ids=frozenset({0}))
        return Engine(StubRunner(device_s, uses_thread=overlap), kv, config, limits)

    def _requests(self, num_sequences: int, max_tokens: int) -> Sequence[GenerationRequest]:
        """No two prompts share a page."""
        sampling = SamplingParams(max_tokens=max_tokens, seed=0, temperature=0, ignore_eos=True)
        return [
            GenerationRequest(
                request_id=RequestId(f"r{index}"),
                prompt_token_ids=(1 + index, *range(2, self.prompt_tokens + 1)),
                sampling=sampling,
            )
            for index in range(num_sequences)
        ]


class StubRunner:
    """Lays batches out as the real one does, then says the same token always, after device_s seconds."""

    def __init__(self, device_s: float, *, uses_thread: bool) -> None:
        self._builder = BatchBuilder(PAGE_SIZE, torch.device("cpu"))
        self._device_s = device_s
        self._thread: Steps[list[SampledToken]] = DeviceThread() if uses_thread else CallersThread()

    def launch(self, plan: StepPlan) -> StepInThread[list[SampledToken]] | StepInPlace[list[SampledToken]]:
        self._builder.build(plan)
        work = partial(self._say, [SampledToken(1, None)] * len(sampled_rows(plan).sequences))
        return self._thread.launch(work)

    def _say(self, tokens: list[SampledToken], _: Masks) -> list[SampledToken]:
        if self._device_s:
            time.sleep(self._device_s)
        return tokens


def _seconds(act: Callable[[], object], clock: Callable[[], float]) -> float:
    start = clock()
    act()
    return clock() - start
