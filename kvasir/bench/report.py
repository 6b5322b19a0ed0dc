"""Results as tables for a person."""

from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table

from kvasir.bench.ceiling import Ceiling

MUCH_OF_A_CORE = 0.5
"""From here on the client's own time is a visible part of what it measures."""

LATE_MS = 10.0

TITLES = {
    "ttft": "time to first token",
    "tpot": "time per output token after the first",
    "itl": "inter-token latency",
    "e2el": "end to end",
    "client_queue_time": "wait for a free place",
}

COUNTS = (
    ("completed", "completed requests", ",.0f"),
    ("failed", "failed requests", ",.0f"),
    ("duration", "duration, s", ",.2f"),
    ("total_input_tokens", "input tokens", ",.0f"),
    ("total_output_tokens", "output tokens", ",.0f"),
    ("request_throughput", "requests per second", ",.2f"),
    ("request_goodput", "of these good (--goodput)", ",.2f"),
    ("output_throughput", "output tokens per second", ",.1f"),
    ("total_token_throughput", "all tokens per second", ",.1f"),
    ("max_output_tokens_per_s", "the best second's output tokens", ",.0f"),
    ("max_concurrent_requests", "most requests at once", ",.0f"),
)


def print_result(console: Console, result: Mapping[str, Any], metrics: Sequence[str]) -> None:
    """Counts, then latencies, then all that one should know before believing them."""
    table = Table(box=None, pad_edge=False, show_header=False)
    table.add_column()
    table.add_column(justify="right")
    for key, title, form in COUNTS:
        if result.get(key) is not None:
            table.add_row(title, format(result[key], form))
    console.print(table)
    if result["completed"]:
        console.print(_latency_table(result, metrics))
    for note in notes_on(result):
        console.print(note, markup=False, soft_wrap=True)


def _latency_table(result: Mapping[str, Any], metrics: Sequence[str]) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("milliseconds")
    statistics = _statistics(result, metrics)
    for statistic in statistics:
        table.add_column(statistic, justify="right")
    for metric in metrics:
        cells = (f"{result[f'{statistic}_{metric}_ms']:,.2f}" for statistic in statistics)
        table.add_row(f"{TITLES[metric]} ({metric})", *cells)
    return table


def _statistics(result: Mapping[str, Any], metrics: Sequence[str]) -> list[str]:
    ending = f"_{metrics[0]}_ms"
    return [key.removesuffix(ending) for key in result if key.endswith(ending)]


def notes_on(result: Mapping[str, Any]) -> list[str]:
    """Failures by cause, and whatever makes the figures mean less than they seem to."""
    notes = [
        note
        for cause, number in result["failures"].items()
        for note in (f"failed, {cause}: {number}", f"  for example: {_example(result, cause)}")
    ]
    if result["interrupted"]:
        notes.append(f"stopped early: {result['aborted']} requests cut, {result['not_sent']} not sent")
    per_chunk = result["tokens_per_chunk"]
    if per_chunk is not None and abs(per_chunk - 1) > 0.02:
        notes.append(
            f"a chunk carries {per_chunk:.2f} tokens on average: itl is the time between chunks, tpot that of tokens"
        )
    counted = {by: number for by, number in result["output_tokens_counted_by"].items() if by != "usage"}
    for by, number in counted.items():
        notes.append(f"{number} answers came without usage: their tokens are counted by {_COUNTERS[by]}")
    if result["client_cpu_share"] > MUCH_OF_A_CORE:
        notes.append(
            f"warning: the client used {100 * result['client_cpu_share']:.0f} % of a core and may be what limited this "
            "run; use several clients, or another host for it"
        )
    if result["retried"]:
        notes.append(f"sent again, as the server closed an idle connection just then: {result['retried']} requests")
    if result["p99_send_lag_ms"] > LATE_MS:
        notes.append(
            f"the client was late: 1 % of the requests left it {result['p99_send_lag_ms']:.0f} ms after their time"
        )
    return notes


_COUNTERS = {"tokenizer": "the tokenizer", "chunks": "chunks with text, which may be too few"}


def _example(result: Mapping[str, Any], cause: str) -> str:
    return next((error for error in result["errors"] if error.startswith(cause)), cause)


def ceiling_notes(ceiling: Ceiling, result: Mapping[str, Any]) -> list[str]:
    """What the client could do at the most, and how near the run came to it."""
    share = ceiling.share(result["request_throughput"], result["output_throughput"])
    return [
        f"ceiling of this client: {ceiling.requests_per_s:,.0f} requests of one token per second, "
        f"{ceiling.tokens_per_s:,.0f} tokens per second; it adds up to {ceiling.added_latency_ms:.2f} ms to ttft",
        f"this run used {100 * share:.0f} % of it",
    ]
