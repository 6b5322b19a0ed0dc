"""What is made of the runs of peers, of which some were cut."""

import pytest

from bench.peers.cells import CELLS, Run
from bench.peers.table import MIB, OURS, tables

CELL = CELLS[0]


def run(peer: str, *, completed: int, aborted: int = 0, tokens_per_s: float = 0.0, ttft_ms: float = 0.0) -> Run:
    result = {
        "completed": completed,
        "failed": 0,
        "aborted": aborted,
        "not_sent": 0,
        "interrupted": aborted > 0,
        "output_throughput": tokens_per_s,
        "p50_ttft_ms": ttft_ms,
        "p99_ttft_ms": ttft_ms,
        "median_tpot_ms": 1.0,
        "others_share": 0.0,
        "client_cpu_share": 0.0,
        "total_input_tokens": 1,
    }
    return Run(peer, "m", results={CELL: result})


def ratios(title: str, *others: Run) -> tuple[str, str]:
    """By the best other, and by the median one."""
    ours = run(OURS, completed=8, tokens_per_s=30.0, ttft_ms=40.0)
    text = tables([ours, *others], [CELL], {"m": MIB})
    table = text.split(f"m: {title}")[1].split("\n\n")[1]
    best, median = (line.split("|")[2].strip() for line in table.splitlines()[-2:])
    return best, median


def test_peer_that_gave_nothing_whole_makes_no_tokens_a_second() -> None:
    others = [run("slow", completed=0, aborted=8), run("fast", completed=8, tokens_per_s=20.0)]
    assert ratios("output tokens per second", *others) == ("1.50", "3.00")


def test_nothing_is_compared_with_peers_that_all_gave_nothing_whole() -> None:
    assert ratios("output tokens per second", run("slow", completed=0, aborted=8)) == ("-", "-")


@pytest.mark.parametrize(("completed", "ratio"), [(3, "0.50"), (4, "4.00")])
def test_times_of_those_who_came_first_are_not_compared(completed: int, ratio: str) -> None:
    first = run("slow", completed=completed, aborted=8 - completed, tokens_per_s=1.0, ttft_ms=10.0)
    others = [first, run("fast", completed=8, ttft_ms=80.0)]
    assert ratios("time to first token, 99th percentile, ms", *others)[0] == ratio
