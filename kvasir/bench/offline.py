"""What the engine does in this process, without a server: throughput of many prompts, latency of one batch."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from kvasir.bench.workloads import Turn

if TYPE_CHECKING:
    from kvasir.llm import LLM

PERCENTILES = (10, 25, 50, 75, 90, 99)
"""vLLM's of `bench latency`."""

Clock = Callable[[], float]


@dataclass(frozen=True, slots=True, kw_only=True)
class Throughput:
    """Tokens as the engine counted them."""

    elapsed_s: float
    num_requests: int
    num_prompt_tokens: int
    num_output_tokens: int

    def to_json(self) -> dict[str, float]:
        """vLLM's keys, and ours for output tokens alone."""
        num_tokens = self.num_prompt_tokens + self.num_output_tokens
        return {
            "elapsed_time": self.elapsed_s,
            "num_requests": self.num_requests,
            "total_num_tokens": num_tokens,
            "requests_per_second": self.num_requests / self.elapsed_s,
            "tokens_per_second": num_tokens / self.elapsed_s,
            "output_tokens_per_second": self.num_output_tokens / self.elapsed_s,
        }


@dataclass(frozen=True, slots=True)
class Latency:
    """Seconds of each whole batch, from prompts to answers."""

    latencies_s: Sequence[float] = field(default_factory=tuple)

    def to_json(self) -> dict[str, object]:
        """vLLM's keys."""
        import numpy as np

        return {
            "avg_latency": float(np.mean(self.latencies_s)),
            "latencies": list(self.latencies_s),
            "percentiles": {str(p): float(np.percentile(self.latencies_s, p)) for p in PERCENTILES},
        }


def measure_throughput(llm: "LLM", turns: Sequence[Turn], clock: Clock = time.perf_counter) -> Throughput:
    """All prompts at once, each answered in full length. Raises InvalidRequest for those too long for the model."""
    started_s = clock()
    num_prompt, num_output = _answer(llm, turns, shows_progress=True)
    return Throughput(
        elapsed_s=clock() - started_s,
        num_requests=len(turns),
        num_prompt_tokens=num_prompt,
        num_output_tokens=num_output,
    )


def measure_latency(llm: "LLM", batches: Sequence[Sequence[Turn]], clock: Clock = time.perf_counter) -> Latency:
    """One batch after another."""
    latencies = []
    for batch in batches:
        started_s = clock()
        _answer(llm, batch, shows_progress=False)
        latencies.append(clock() - started_s)
    return Latency(latencies)


def _answer(llm: "LLM", turns: Sequence[Turn], *, shows_progress: bool) -> tuple[int, int]:
    """Numbers of prompt and output tokens."""
    from kvasir import SamplingParams

    params = [SamplingParams(temperature=0, max_tokens=turn.max_tokens, ignore_eos=True) for turn in turns]
    outputs = llm.generate([turn.text for turn in turns], params, use_tqdm=shows_progress)
    num_prompt = sum(len(output.prompt_token_ids) for output in outputs)
    return num_prompt, sum(len(choice.token_ids) for output in outputs for choice in output.outputs)
