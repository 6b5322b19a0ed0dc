"""What fair shares do for a quiet tenant beside a flood, and what they cost.

    python -m bench.fairness              the embedded demo model, real seconds
    python -m bench.fairness --simulate   no model: a step's seconds come from a formula (bench/engines.py)

Three tenants: `loud` always has 64 requests in line, `steady` always 8 with longer answers, `quiet` sends one small
request every 10 steps. Printed: quiet's time to first token, in steps (1: the step that comes next) and in seconds, and
Jain's index of the service (input tokens + 2 * output tokens) that loud and steady, who both always have something in
line, got: 1 is equal, 0.5 is all for one. Then by how much quiet's 99th percentile rises with the flood:

    over an idle engine     quiet alone, whose steps hold nothing but its own tokens
    over a busy engine      quiet beside steady, who keeps all places taken without any flood

Real seconds are the process's own on one CPU thread, so that neighbours on a shared machine count little. A request
comes between two steps: the rest of a step that is under way is not in them. The first comes when all places are taken.
"""

import argparse
import random
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from bench.engines import VOCAB_SIZE, MakeEngine, simulated, with_demo_model
from bench.figures import percentile
from kvasir_protocol.config import EngineConfig
from kvasir_protocol.ids import RequestId
from kvasir_protocol.request import GenerationRequest, SamplingParams
from kvasir_workers.engine import Engine
from kvasir_workers.fair_share import INPUT_WEIGHT, OUTPUT_WEIGHT

MAX_NUM_SEQS = 16
BUDGET_TOKENS = 256
QUIET_EVERY_STEPS = 10


@dataclass(frozen=True, slots=True)
class Habit:
    """What a tenant sends; num_in_line: kept up all the time."""

    prompt_tokens: tuple[int, int]
    answer_tokens: tuple[int, int]
    num_in_line: int = 0


HABITS = {
    "loud": Habit((32, 128), (8, 24), 64),
    "steady": Habit((16, 64), (16, 48), 8),
    "quiet": Habit((16, 32), (4, 8)),
}


@dataclass(slots=True)
class Result:
    """ttft: of quiet's requests, in steps and in seconds. service: by tenant. num_tokens: sampled in all."""

    ttft_steps: list[float] = field(default_factory=list)
    ttft_s: list[float] = field(default_factory=list)
    service: Counter[str] = field(default_factory=Counter)
    num_tokens: int = 0
    seconds: float = 0.0

    def add(self, other: "Result") -> None:
        self.ttft_steps += other.ttft_steps
        self.ttft_s += other.ttft_s
        self.service += other.service
        self.num_tokens += other.num_tokens
        self.seconds += other.seconds


class Round:
    """One engine under the traffic of some tenants."""

    def __init__(self, engine: Engine, clock: Callable[[], float], tenants: tuple[str, ...], seed: int) -> None:
        self._engine, self._clock, self._tenants = engine, clock, tenants
        self._dice = random.Random(seed)
        self._sent: dict[RequestId, tuple[str, int, int, float]] = {}
        self._begun: set[RequestId] = set()
        self._num_unbegun: Counter[str] = Counter()
        self._num_steps = 0
        self.result = Result()

    def run(self, num_steps: int) -> Result:
        """Traffic for so many steps, and on until quiet's last request has its first token."""
        started_at = self._clock()
        while self._num_steps < num_steps or self._num_unbegun["quiet"]:
            if self._num_steps and self._num_steps % QUIET_EVERY_STEPS == 0 and self._num_steps < num_steps:
                self._send("quiet")
            for tenant in self._tenants:
                while self._num_unbegun[tenant] < HABITS[tenant].num_in_line:
                    self._send(tenant)
            self._step()
        self.result.seconds = self._clock() - started_at
        return self.result

    def _send(self, tenant: str) -> None:
        habit, number = HABITS[tenant], len(self._sent)
        request = GenerationRequest(
            request_id=RequestId(f"{tenant}-{number}"),
            prompt_token_ids=tuple(
                self._dice.randrange(VOCAB_SIZE) for _ in range(self._dice.randint(*habit.prompt_tokens))
            ),
            sampling=SamplingParams(
                temperature=0, seed=0, ignore_eos=True, max_tokens=self._dice.randint(*habit.answer_tokens)
            ),
            tenant=tenant,
        )
        self._engine.add(request)
        num_prompt_tokens = len(request.prompt_token_ids)
        self._sent[request.request_id] = (tenant, num_prompt_tokens, self._num_steps, self._clock())
        self._num_unbegun[tenant] += 1

    def _step(self) -> None:
        self._num_steps += 1
        for output in self._engine.step():
            tenant, num_prompt_tokens, sent_in_step, sent_at = self._sent[output.request_id]
            self.result.num_tokens += len(output.token_ids)
            self.result.service[tenant] += round(OUTPUT_WEIGHT * len(output.token_ids))
            if output.request_id in self._begun:
                continue
            self._begun.add(output.request_id)
            self._num_unbegun[tenant] -= 1
            self.result.service[tenant] += round(INPUT_WEIGHT * num_prompt_tokens)
            if tenant == "quiet":
                self.result.ttft_steps.append(self._num_steps - sent_in_step)
                self.result.ttft_s.append(self._clock() - sent_at)


def jain(values: list[float]) -> float:
    """(sum x)^2 / (n * sum x^2): Jain, Chiu and Hawe, 1984."""
    return sum(values) ** 2 / (len(values) * sum(value * value for value in values))


ALL = ("loud", "steady")
CASES: Mapping[str, tuple[tuple[str, ...], bool]] = {
    "quiet alone": ((), False),
    "no flood, fcfs": (("steady",), False),
    "no flood, fair": (("steady",), True),
    "flood, fcfs": (ALL, False),
    "flood, fair": (ALL, True),
}
"""Who sends beside quiet, and whether shares are fair."""


def measure(make_engine: MakeEngine, num_rounds: int, num_steps: int) -> dict[str, Result]:
    """Rounds of all cases in turn, so that a busy moment of the machine meets each."""
    results = {name: Result() for name in CASES}
    for seed in range(num_rounds):
        for name, (tenants, fair_share) in CASES.items():
            config = EngineConfig(
                max_num_seqs=MAX_NUM_SEQS, max_num_batched_tokens=BUDGET_TOKENS, device="cpu", fair_share=fair_share
            )
            engine, clock = make_engine(config)
            results[name].add(Round(engine, clock, tenants, seed).run(num_steps))
    return results


def show(results: Mapping[str, Result]) -> None:
    print(f"{'':14} {'n':>4} {'ttft steps':>15} {'ttft ms':>19} {'Jain':>6} {'loud':>8} {'steady':>8} {'tokens/s':>9}")
    print(f"{'':19} {'p50':>8} {'p99':>6} {'p50':>11} {'p99':>7}")
    for name, result in results.items():
        steps = [percentile(result.ttft_steps, share) for share in (0.5, 0.99)]
        millis = [1000 * percentile(result.ttft_s, share) for share in (0.5, 0.99)]
        shares = [float(result.service[tenant]) for tenant in ALL]
        index = f"{jain(shares):6.3f}" if all(shares) else f"{'-':>6}"
        print(
            f"{name:14} {len(result.ttft_steps):4} {steps[0]:8.0f} {steps[1]:6.0f} {millis[0]:11.1f} {millis[1]:7.1f} "
            f"{index} {shares[0]:8.0f} {shares[1]:8.0f} {result.num_tokens / result.seconds:9.0f}"
        )
    for baseline, name in (("quiet alone", "an idle engine"), ("no flood, fair", "a busy engine")):
        rises = [
            percentile(getattr(results["flood, fair"], kind), 0.99) / percentile(getattr(results[baseline], kind), 0.99)
            for kind in ("ttft_steps", "ttft_s")
        ]
        print(f"flood, fair: p99 over {name:15} {rises[0] - 1:+7.0%} in steps {rises[1] - 1:+7.0%} in seconds")


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--simulate", action="store_true", help="no model, seconds by formula")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--steps", type=int, default=300, help="of each round and case")
    options = parser.parse_args(arguments)
    make_engine = simulated if options.simulate else with_demo_model()
    show(measure(make_engine, options.rounds, options.steps))


if __name__ == "__main__":
    main()
