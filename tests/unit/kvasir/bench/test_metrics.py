import pytest

from kvasir.bench.metrics import Wanted, details, peak_concurrency, summarize, tokens_by_second
from kvasir.bench.records import Failure, Record

TIMED_OUT = Failure("timeout", "not done in 5 s")


def record(sent_s=0.0, chunks=(), tokens=None, prompt=10, queue_s=0.0, failure=None, ended_s=None):
    """chunks: seconds from sent_s."""
    chunk_s = tuple(sent_s + chunk for chunk in chunks)
    return Record(
        planned_s=sent_s - queue_s,
        queue_s=queue_s,
        sent_s=sent_s,
        ended_s=ended_s if ended_s is not None else chunk_s[-1],
        chunk_s=chunk_s,
        num_prompt_tokens=prompt,
        num_output_tokens=len(chunks) if tokens is None else tokens,
        failure=failure,
    )


def test_known_requests_give_known_figures():
    records = [record(0, (1, 2, 3)), record(0, (3, 7, 11))]
    result = summarize(records, 10.0, Wanted(metrics=("ttft", "tpot", "itl", "e2el"), percentiles=(50, 99.9)))
    assert (result["completed"], result["failed"], result["failures"]) == (2, 0, {})
    assert (result["total_input_tokens"], result["total_output_tokens"]) == (20, 6)
    assert (result["request_throughput"], result["output_throughput"]) == (0.2, 0.6)
    assert result["total_token_throughput"] == 2.6
    assert (result["mean_ttft_ms"], result["median_ttft_ms"], result["std_ttft_ms"]) == (2000, 2000, 1000)
    assert result["p50_tpot_ms"] == 2500
    assert (result["mean_itl_ms"], result["p99.9_itl_ms"]) == (2500, pytest.approx(4000))
    assert result["mean_e2el_ms"] == 7000
    assert result["request_goodput"] is None


def test_failed_requests_are_counted_by_cause_and_told_one_by_one():
    lost = Failure("HTTP 503", "full")
    records = [record(0, (1,)), record(failure=TIMED_OUT, ended_s=5.0), *[record(failure=lost, ended_s=0.1)] * 2]
    result = summarize(records, 5.0, Wanted())
    assert (result["completed"], result["failed"]) == (1, 3)
    assert list(result["failures"].items()) == [("HTTP 503", 2), ("timeout", 1)]
    assert result["mean_ttft_ms"] == 1000
    told = details(records)
    assert told["errors"] == ["", "timeout: not done in 5 s", "HTTP 503: full", "HTTP 503: full"]
    assert {len(entries) for entries in told.values()} == {4}


def test_good_requests_keep_every_limit():
    records = [record(0, (0.1, 0.2)), record(0, (0.3, 0.4)), record(0, (0.1, 0.9)), record(0, (0.1,))]
    slo = {"ttft": 200, "tpot": 500}
    assert summarize(records, 2.0, Wanted(slo=slo))["request_goodput"] == 1.0  # the first and the last
    failed = [record(failure=TIMED_OUT, ended_s=0.0)]
    assert summarize(failed, 2.0, Wanted(slo={"ttft": 200}))["request_goodput"] == 0


def test_several_tokens_in_a_chunk_shorten_tpot_and_not_itl():
    result = summarize([record(0, (1, 2, 3), tokens=9)], 3.0, Wanted())
    assert result["mean_itl_ms"] == 1000
    assert result["mean_tpot_ms"] == 250
    assert result["tokens_per_chunk"] == 3


def test_an_answer_without_text_has_a_time_to_its_end():
    silent = record(2, (), tokens=1, ended_s=2.5)
    assert (silent.ttft_s, silent.tpot_s, silent.itls_s) == (0.5, None, ())


def test_waiting_for_a_place_is_no_lateness_of_the_client():
    result = summarize([record(10, (1,), queue_s=4)], 1.0, Wanted(metrics=("client_queue_time",)))
    assert result["p99_send_lag_ms"] == 0
    assert result["mean_client_queue_time_ms"] == 4000


def test_nothing_at_all_is_zeros():
    result = summarize([], 0.0, Wanted())
    assert (result["completed"], result["request_throughput"], result["p99_itl_ms"]) == (0, 0, 0)


def test_tokens_fall_into_the_second_in_which_their_chunk_came():
    assert tokens_by_second([record(5, (0.5, 0.6, 2.1), tokens=6)]) == [4, 0, 2]


def test_a_request_that_begins_as_another_ends_does_not_add_to_the_peak():
    records = [record(0, (1.0,)), record(1, (1.0,)), record(0.5, (1.0,))]
    assert peak_concurrency(records) == 2
