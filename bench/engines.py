"""Engines to measure: over the demo model in real seconds, or without a model in seconds by formula."""

import time
from collections.abc import Callable

import torch

from kvasir.demo import demo_model_path
from kvasir_protocol.config import EngineConfig, ModelConfig
from kvasir_workers.engine import Engine
from kvasir_workers.kv.manager import KvManager
from kvasir_workers.load import LoadedModel, build_engine, load_model
from kvasir_workers.request_check import EngineLimits
from kvasir_workers.runner.grammar_mask import GrammarMasks
from kvasir_workers.runner.sampler import SampledToken
from kvasir_workers.step_plan import StepPlan

STEP_S, TOKEN_S = 5e-3, 2e-5
"""Of a simulated step: about what a model of 8 billion parameters takes on a large GPU, weights and per token."""

VOCAB_SIZE = 1000
KV_BYTES = 64 * 2**20


class SimulatedFlight:
    """A step that is over: it says the same token always."""

    def __init__(self, plan: StepPlan) -> None:
        self._sampled = [SampledToken(1, None) for entry in plan.entries if entry.samples]

    def allow(self, make_masks: Callable[[], GrammarMasks | None] | None) -> None:
        """No bench asks for a grammar."""

    def land(self) -> list[SampledToken]:
        return self._sampled


class SimulatedRunner:
    """Turns the clock by what each step would have taken."""

    def __init__(self) -> None:
        self.now = 0.0

    def launch(self, plan: StepPlan) -> SimulatedFlight:
        self.now += STEP_S + TOKEN_S * plan.num_tokens
        return SimulatedFlight(plan)


def simulated(config: EngineConfig, num_pages: int = 512) -> tuple[Engine, Callable[[], float]]:
    """An engine and its clock."""
    runner = SimulatedRunner()
    limits = EngineLimits(max_sequence_tokens=2048, vocab_size=VOCAB_SIZE, eos_token_ids=frozenset())
    return Engine(runner, KvManager(num_pages, config.page_size), config, limits), lambda: runner.now


def load_demo() -> LoadedModel:
    model = ModelConfig(path=str(demo_model_path()), served_name="demo")
    return load_model(model, EngineConfig(device="cpu", kv_cache_bytes=KV_BYTES))


MakeEngine = Callable[[EngineConfig], tuple[Engine, Callable[[], float]]]
"""An engine with an empty cache, and its clock in seconds."""


def with_demo_model() -> MakeEngine:
    """On one CPU thread, and seconds of this process: what others do on the machine is not in them."""
    loaded = load_demo()
    torch.set_num_threads(1)
    return lambda config: (build_engine(loaded, config), time.process_time)
