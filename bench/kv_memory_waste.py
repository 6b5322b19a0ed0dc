"""How much of the memory that running requests hold for keys and values holds none.

    python -m bench.kv_memory_waste

No model runs: the scheduler and the page manager are the real ones, and what a page holds does not matter to them.
Requests of mixed lengths (log-normal; their means are those that the vLLM paper gives of ShareGPT, 161 tokens in and
338 out, or of Alpaca, 19 in and 58 out) keep all places taken. At each step that computes with all places taken is
counted, over all running requests:

    stored      tokens whose keys and values are there when the step ends
    held        slots for tokens in the pages that they hold (a shared page once; pages whose only use is that somebody
                may ask for them again are not counted: they are given up for the asking)
    waste       1 - stored / held: the part of last pages that is empty, and whatever is reserved for later

The last lines say what the same moments would have wasted with memory in one piece per request, reserved when it comes:
for the longest that the model can do, for its prompt and max_tokens rounded up to a power of two, or exactly.
"""

import argparse
import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from bench.engines import VOCAB_SIZE, SimulatedFlight
from bench.figures import percentile
from kvasir_protocol.config import EngineConfig
from kvasir_protocol.ids import RequestId
from kvasir_protocol.request import GenerationRequest, SamplingParams
from kvasir_workers.engine import Engine
from kvasir_workers.kv.manager import KvManager
from kvasir_workers.request_check import EngineLimits
from kvasir_workers.step_plan import StepPlan

MAX_MODEL_LEN = 2048
MIXES = {"ShareGPT": (161.0, 338.0), "Alpaca": (19.0, 58.0)}
LOG_SIGMA = 1.0

RESERVATIONS: dict[str, Callable[[int], int]] = {
    "one piece, longest": lambda final: MAX_MODEL_LEN,
    "one piece, power of 2": lambda final: min(MAX_MODEL_LEN, 2 ** math.ceil(math.log2(final))),
    "one piece, exact": lambda final: final,
}
"""Slots that a request reserves in one piece, from the tokens that it will have in the end."""


@dataclass(slots=True)
class CountingRunner:
    """Counts the slots of steps with all places taken."""

    kv: KvManager
    num_places: int
    waste: list[float] = field(default_factory=list)
    reserved: dict[str, list[float]] = field(default_factory=lambda: {name: [] for name in RESERVATIONS})

    def launch(self, plan: StepPlan) -> SimulatedFlight:
        if len(plan.entries) == self.num_places:
            self._count(plan)
        return SimulatedFlight(plan)

    def _count(self, plan: StepPlan) -> None:
        stored = sum(entry.start + entry.num_new for entry in plan.entries)
        self.waste.append(1 - stored / (self.kv.num_used * self.kv.page_size))
        for name, reserve in RESERVATIONS.items():
            held = sum(reserve(entry.sequence.num_final_tokens) for entry in plan.entries)
            self.reserved[name].append(1 - stored / held)


def requests(mix: str, number: int, seed: int) -> list[GenerationRequest]:
    dice = random.Random(seed)

    def length(mean: float) -> int:
        drawn = dice.lognormvariate(math.log(mean) - LOG_SIGMA**2 / 2, LOG_SIGMA)
        return max(1, min(MAX_MODEL_LEN // 2, round(drawn)))

    mean_prompt, mean_answer = MIXES[mix]
    return [
        GenerationRequest(
            request_id=RequestId(str(index)),
            prompt_token_ids=tuple(dice.choices(range(VOCAB_SIZE), k=length(mean_prompt))),
            sampling=SamplingParams(temperature=0, seed=0, ignore_eos=True, max_tokens=length(mean_answer)),
        )
        for index in range(number)
    ]


def measure(mix: str, page_size: int, num_places: int, num_requests: int, seed: int) -> CountingRunner:
    """All requests are in line from the start, and memory is enough for all places."""
    config = EngineConfig(page_size=page_size, max_num_seqs=num_places, max_waiting_requests=None)
    kv = KvManager(num_places * MAX_MODEL_LEN // page_size, page_size)
    runner = CountingRunner(kv, num_places)
    limits = EngineLimits(max_sequence_tokens=MAX_MODEL_LEN, vocab_size=VOCAB_SIZE, eos_token_ids=frozenset())
    engine = Engine(runner, kv, config, limits)
    for request in requests(mix, num_requests, seed):
        engine.add(request)
    while engine.has_work:
        engine.step()
    return runner


def show(name: str, waste: Sequence[float]) -> None:
    mean = sum(waste) / len(waste)
    print(f"  {name:24}{mean:8.1%}{percentile(waste, 0.99):8.1%}{max(waste):8.1%}")


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--places", type=int, default=64, help="requests that run at once")
    parser.add_argument("--requests", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    for mix in MIXES:
        runs = {size: measure(mix, size, options.places, options.requests, options.seed) for size in (8, 16, 32)}
        print(f"{mix} lengths, {len(runs[16].waste)} steps{'mean':>12}{'p99':>8}{'max':>8}")
        for size, run in runs.items():
            show(f"pages of {size}", run.waste)
        for name, waste in runs[16].reserved.items():
            show(name, waste)


if __name__ == "__main__":
    main()
