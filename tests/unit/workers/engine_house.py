"""An engine over fakes, and all that it said."""

from kvasir_protocol.config import EngineConfig
from kvasir_protocol.events import TokenOutput
from kvasir_protocol.request import GenerationRequest, SamplingParams
from kvasir_workers.engine import Engine
from kvasir_workers.kv.manager import KvManager, Reuse
from kvasir_workers.kv.prefix_tree import PageWatcher
from kvasir_workers.request_check import EngineLimits
from kvasir_workers.sequence import Sequence
from tests.unit.workers.fake_tiers import FakeTiers
from tests.unit.workers.fakes import (
    EOS,
    VOCAB_SIZE,
    Clock,
    FakeRunner,
    RecordingExporter,
)

PAGE_SIZE = 4


class House:
    """An engine over fakes, and all that it said."""

    def __init__(
        self,
        *,
        num_pages: int = 50,
        page_size: int = PAGE_SIZE,
        max_num_seqs: int = 8,
        budget: int = 16,
        caches: bool = True,
        reuse: Reuse | None = None,
        watcher: PageWatcher | None = None,
        below: FakeTiers | None = None,
        overlap: bool = False,
        is_prompt: bool = True,
        num_batches: int = 1,
        **settings: object,
    ) -> None:
        """is_prompt: the runner computes as early as it may. settings: other fields of EngineConfig."""
        config = EngineConfig(
            page_size=page_size,
            max_num_seqs=max_num_seqs,
            max_num_batched_tokens=budget,
            enable_prefix_caching=caches,
            overlap=overlap,
            **settings,  # type: ignore[arg-type]
        )
        self.clock = Clock()
        self.max_num_seqs, self.budget, self.capacity = max_num_seqs, budget, num_pages * page_size
        tiers = below.tiers if below is not None else None
        self.kv = KvManager(num_pages, page_size, reuse or Reuse(enabled=caches), watcher, tiers)
        self.runner = FakeRunner(self.kv, below, is_prompt=is_prompt)
        self.exporter = RecordingExporter()
        limits = EngineLimits(max_sequence_tokens=self.capacity, vocab_size=VOCAB_SIZE, eos_token_ids=frozenset({EOS}))
        self.engine = Engine(self.runner, self.kv, config, limits, self.exporter, self.clock, num_batches)
        self.outputs: dict[str, list[TokenOutput]] = {}

    def step(self) -> list[TokenOutput]:
        num_plans = len(self.runner.plans)
        outputs = self.engine.step()
        for plan in self.runner.plans[num_plans:]:
            assert plan.num_tokens <= self.budget
        assert self.engine.num_running <= self.max_num_seqs
        for output in outputs:
            self.outputs.setdefault(output.request_id, []).append(output)
        self.engine.audit()
        return outputs

    def drain(self, max_steps: int = 2000) -> None:
        for _ in range(max_steps):
            if not self.engine.has_work:
                return
            self.step()
        raise AssertionError(f"{self.engine.num_running} run and {self.engine.num_waiting} wait for ever")

    def answer(self, request: GenerationRequest) -> list[int]:
        self.engine.add(request)
        self.drain()
        return self.tokens(request.request_id)

    def tokens(self, name: str) -> list[int]:
        return [token for output in self.outputs.get(name, []) for token in output.token_ids]

    def reserve(self, request: GenerationRequest) -> Sequence:
        sequence = self.engine.reserve(request)
        self.engine.audit()
        return sequence

    def fill(self, sequence: Sequence) -> None:
        """What the prefill side pushes: all tokens that are not cached here."""
        start = sequence.num_computed
        self.runner.write(sequence.pages, start, sequence.token_ids[start:])


def greedy(**changes: object) -> SamplingParams:
    return SamplingParams(**{"max_tokens": 6, "seed": 0, "temperature": 0, "ignore_eos": True, **changes})  # type: ignore[arg-type]
