from io import StringIO

from rich.console import Console

from kvasir.bench.ceiling import Ceiling
from kvasir.bench.report import ceiling_notes, notes_on, print_result

CLEAN = {
    "failures": {}, "errors": ["", ""], "interrupted": False, "aborted": 0, "not_sent": 0, "tokens_per_chunk": 1.0,
    "output_tokens_counted_by": {"usage": 2}, "p99_send_lag_ms": 0.4, "retried": 0,
    "client_cpu_share": 0.1,
}  # fmt: skip


def test_a_clean_run_needs_no_notes():
    assert notes_on(CLEAN) == []


def test_every_cause_of_failure_is_told_with_an_example():
    errors = ["timeout: not done in 3 s", "", "HTTP 503: full", "timeout: not done in 3 s"]
    notes = notes_on({**CLEAN, "failures": {"timeout": 2, "HTTP 503": 1}, "errors": errors})
    assert notes == [
        "failed, timeout: 2", "  for example: timeout: not done in 3 s",
        "failed, HTTP 503: 1", "  for example: HTTP 503: full",
    ]  # fmt: skip


def test_what_makes_figures_mean_less_is_told():
    (several,) = notes_on({**CLEAN, "tokens_per_chunk": 2.5})
    assert "2.50 tokens" in several
    (guessed,) = notes_on({**CLEAN, "output_tokens_counted_by": {"usage": 1, "chunks": 1}})
    assert guessed.startswith("1 answers came without usage")
    (busy,) = notes_on({**CLEAN, "client_cpu_share": 0.9})
    assert busy.startswith("warning: the client used 90 % of a core")
    (retried,) = notes_on({**CLEAN, "retried": 4})
    assert retried.endswith("4 requests")
    (late,) = notes_on({**CLEAN, "p99_send_lag_ms": 70.0})
    assert "the client was late" in late
    (stopped,) = notes_on({**CLEAN, "interrupted": True, "aborted": 3, "not_sent": 9})
    assert stopped == "stopped early: 3 requests cut, 9 not sent"


def test_the_table_has_a_column_for_each_statistic_of_the_result():
    figures = {"mean_ttft_ms": 1.0, "median_ttft_ms": 2.0, "std_ttft_ms": 3.0, "p99.9_ttft_ms": 4.0}
    console = Console(width=100, file=StringIO())
    print_result(console, {**CLEAN, "completed": 2, "request_goodput": None, **figures}, ["ttft"])
    text = console.file.getvalue()
    assert [word for word in text.split() if word in ("mean", "median", "std", "p99.9")] == [
        "mean", "median", "std", "p99.9",
    ]  # fmt: skip
    assert "good" not in text


def test_no_completed_request_has_no_latency():
    console = Console(width=100, file=StringIO())
    print_result(console, {**CLEAN, "completed": 0, "failed": 3, "mean_ttft_ms": 0.0}, ["ttft"])
    assert "failed requests" in console.file.getvalue()
    assert "first token" not in console.file.getvalue()


def test_the_ceiling_is_told_and_how_much_of_it_was_used():
    ceiling = Ceiling(requests_per_s=1000.0, tokens_per_s=9000.0, added_latency_ms=0.2)
    run = {"request_throughput": 10.0, "output_throughput": 900.0}
    assert "this run used 10 % of it" in ceiling_notes(ceiling, run)
    assert "this run used 60 % of it" in ceiling_notes(ceiling, {**run, "request_throughput": 600.0})
