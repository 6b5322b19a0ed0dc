"""Two results side by side."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from kvasir.bench.metrics import METRICS
from kvasir_protocol.errors import ConfigError

THROUGHPUTS = ("request_throughput", "request_goodput", "output_throughput", "total_token_throughput")

OFFERED = ("num_prompts", "request_rate", "burstiness", "max_concurrency", "ramp_up_strategy", "total_input_tokens")
"""Of files that say nothing else of their workload (vLLM's): what has to be alike."""


@dataclass(frozen=True, slots=True)
class Comparison:
    """One figure of both; ratio is second / first, None where the first is 0."""

    name: str
    first: float
    second: float

    @property
    def ratio(self) -> float | None:
        return self.second / self.first if self.first else None

    @property
    def is_better(self) -> bool | None:
        """Whether the second is: more of a throughput, less of a time; None if they are equal."""
        if self.first == self.second:
            return None
        is_more = self.second > self.first
        return is_more if self.name in (*THROUGHPUTS, "completed") else not is_more


def differences(first: Mapping[str, Any], second: Mapping[str, Any]) -> list[str]:
    """What was asked of the one and not of the other, a line each."""
    if "workload" in first and "workload" in second:
        return _differing({**first["workload"], **_offered(first)}, {**second["workload"], **_offered(second)})
    return _differing({key: first.get(key) for key in OFFERED}, {key: second.get(key) for key in OFFERED})


def _offered(result: Mapping[str, Any]) -> dict[str, Any]:
    """The measured input of a server that counts otherwise is no other workload."""
    return {key: result.get(key) for key in OFFERED if key != "total_input_tokens"}


def _differing(first: Mapping[str, Any], second: Mapping[str, Any]) -> list[str]:
    keys = dict.fromkeys([*first, *second])
    return [f"{key}: {first.get(key)} and {second.get(key)}" for key in keys if first.get(key) != second.get(key)]


def compare(first: Mapping[str, Any], second: Mapping[str, Any], *, force: bool = False) -> list[Comparison]:
    """Every figure that both have. Raises ConfigError for different workloads, unless forced, or nothing in common."""
    if not force and (found := differences(first, second)):
        raise ConfigError(f"these are different workloads ({'; '.join(found)}); --force compares them all the same")
    keys = ["completed", "failed", "duration", *THROUGHPUTS]
    keys += [key for metric in METRICS for key in first if key.endswith(f"_{metric}_ms")]
    both = [key for key in keys if _is_number(first.get(key)) and _is_number(second.get(key))]
    if not both:
        raise ConfigError("the two results have no figure in common")
    return [Comparison(key, first[key], second[key]) for key in both]


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
