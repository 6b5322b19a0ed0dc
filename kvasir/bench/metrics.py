"""What many records amount to, under vLLM's names (vllm/benchmarks/serve.py), so that its tools read our files."""

import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np

from kvasir.bench.records import Record

Metric = Literal["ttft", "tpot", "itl", "e2el", "client_queue_time"]
METRICS: tuple[Metric, ...] = get_args(Metric)

SloMetric = Literal["ttft", "tpot", "e2el"]
SLO_METRICS: tuple[SloMetric, ...] = get_args(SloMetric)

Slo = Mapping[SloMetric, float]
"""The most milliseconds that a good request takes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """What a summary holds beside throughput. percentiles: from 0 to 100."""

    metrics: tuple[Metric, ...] = ("ttft", "tpot", "itl")
    percentiles: tuple[float, ...] = (99.0,)
    slo: Slo | None = None


def summarize(records: Sequence[Record], duration_s: float, wanted: Wanted) -> dict[str, Any]:
    """Every request is in it: failed ones count in `failed` and `failures`, and in no latency and no throughput."""
    done = [record for record in records if record.failure is None]
    num_input = sum(record.num_prompt_tokens for record in done)
    num_output = sum(record.num_output_tokens for record in done)
    num_chunks = sum(len(record.chunk_s) for record in done)
    seconds = duration_s if duration_s > 0 else math.inf
    return {
        "duration": duration_s,
        "completed": len(done),
        "failed": len(records) - len(done),
        "failures": count_failures(records),
        "total_input_tokens": num_input,
        "total_output_tokens": num_output,
        "request_throughput": len(done) / seconds,
        "request_goodput": None if wanted.slo is None else count_good(done, wanted.slo) / seconds,
        "output_throughput": num_output / seconds,
        "total_token_throughput": (num_input + num_output) / seconds,
        "max_output_tokens_per_s": max(tokens_by_second(done), default=0.0),
        "max_concurrent_requests": peak_concurrency(done),
        "tokens_per_chunk": num_output / num_chunks if num_chunks else None,
        "output_tokens_counted_by": dict(Counter(record.counted_by for record in done)),
        "retried": sum(record.was_retried for record in records),
        "p99_send_lag_ms": 1000 * _percentile([record.send_lag_s for record in done], 99),
        **_all_latencies(done, wanted),
    }


def details(records: Sequence[Record]) -> dict[str, Any]:
    """One entry for each request, failed ones too, in the order they were planned; seconds."""
    first_s = min((record.sent_s for record in records), default=0.0)
    return {
        "input_lens": [record.num_prompt_tokens for record in records],
        "output_lens": [record.num_output_tokens for record in records],
        "ttfts": [0.0 if record.failure else record.ttft_s for record in records],
        "itls": [list(record.itls_s) for record in records],
        "latencies": [record.e2el_s for record in records],
        "start_times": [record.sent_s - first_s for record in records],
        "queue_times": [record.queue_s for record in records],
        "generated_texts": [record.text for record in records],
        "errors": [str(record.failure or "") for record in records],
    }


def count_failures(records: Iterable[Record]) -> dict[str, int]:
    """By cause, the most frequent first."""
    causes = Counter(record.failure.cause for record in records if record.failure is not None)
    return dict(causes.most_common())


def count_good(done: Iterable[Record], slo: Slo) -> int:
    """Requests that keep every limit; one without a second token keeps any limit of tpot."""
    return sum(all(1000 * _value(record, metric) <= limit for metric, limit in slo.items()) for record in done)


def _value(record: Record, metric: SloMetric) -> float:
    match metric:
        case "ttft":
            return record.ttft_s
        case "tpot":
            return record.tpot_s or 0.0
        case "e2el":
            return record.e2el_s


def values_of(done: Iterable[Record], metric: Metric) -> list[float]:
    """Seconds: one of each request; of "itl" one for each pair of chunks."""
    match metric:
        case "itl":
            return [itl for record in done for itl in record.itls_s]
        case "tpot":
            return [tpot for record in done if (tpot := record.tpot_s) is not None]
        case "client_queue_time":
            return [record.queue_s for record in done]
        case "ttft" | "e2el":
            return [_value(record, metric) for record in done]


def _all_latencies(done: Sequence[Record], wanted: Wanted) -> dict[str, float]:
    return {
        key: value
        for metric in wanted.metrics
        for key, value in latencies(metric, values_of(done, metric), wanted.percentiles).items()
    }


def latencies(metric: str, values_s: Sequence[float], percentiles: Sequence[float]) -> dict[str, float]:
    """Mean, median, deviation and percentiles in milliseconds; zeros if there are no values, as vLLM has it."""
    milliseconds = 1000 * np.asarray(values_s if len(values_s) else [0.0])
    figures = {
        f"mean_{metric}_ms": float(milliseconds.mean()),
        f"median_{metric}_ms": float(np.median(milliseconds)),
        f"std_{metric}_ms": float(milliseconds.std()),
    }
    return figures | {
        f"p{percentile:g}_{metric}_ms": float(np.percentile(milliseconds, percentile)) for percentile in percentiles
    }


def _percentile(values: Sequence[float], percentile: float) -> float:
    return float(np.percentile(values, percentile)) if values else 0.0


def tokens_by_second(done: Iterable[Record]) -> list[float]:
    """Output tokens that came in each second from the first request on; those of an answer in equal parts by chunk."""
    done = list(done)
    first_s = min((record.sent_s for record in done), default=0.0)
    seconds: defaultdict[int, float] = defaultdict(float)
    for record in done:
        arrivals = record.chunk_s or (record.ended_s,)
        for arrival in arrivals:
            seconds[int(arrival - first_s)] += record.num_output_tokens / len(arrivals)
    return [seconds[second] for second in range(max(seconds, default=-1) + 1)]


def peak_concurrency(done: Iterable[Record]) -> int:
    """The most requests under way at one moment; one that ends as another begins is not counted twice."""
    changes = sorted(change for record in done for change in ((record.sent_s, 1), (record.ended_s, -1)))
    peak = current = 0
    for _, change in changes:
        current += change
        peak = max(peak, current)
    return peak
