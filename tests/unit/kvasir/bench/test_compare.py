import pytest

from kvasir.bench.compare import compare, differences
from kvasir_protocol.errors import ConfigError


def result(**fields):
    return {
        "completed": 10, "request_throughput": 2.0, "mean_ttft_ms": 40.0, "num_prompts": 10, "request_rate": "inf",
        "workload": {"dataset_name": "random", "input_len": 8}, **fields,
    }  # fmt: skip


def test_every_common_figure_has_a_ratio_and_a_winner():
    found = compare(result(extra=1), result(request_throughput=3.0, mean_ttft_ms=50.0, p99_ttft_ms=1.0))
    assert [(item.name, item.ratio, item.is_better) for item in found] == [
        ("completed", 1.0, None), ("request_throughput", 1.5, True), ("mean_ttft_ms", 1.25, False),
    ]  # fmt: skip


def test_the_ratio_to_nothing_is_none():
    (*_, latency) = compare(result(mean_ttft_ms=0.0), result(mean_ttft_ms=1.0))
    assert latency.ratio is None


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"workload": {"dataset_name": "random", "input_len": 9}}, "input_len: 8 and 9"),
        ({"request_rate": 4.0}, "request_rate: inf and 4.0"),
    ],
)
def test_different_workloads_are_refused_unless_forced(change, told):
    with pytest.raises(ConfigError, match=f"{told}.*--force"):
        compare(result(), result(**change))
    assert compare(result(), result(**change), force=True)


def test_files_that_name_no_workload_are_told_apart_by_what_was_offered():
    ours, theirs = result(total_input_tokens=80), result(total_input_tokens=90)
    assert differences(ours, theirs) == []
    del theirs["workload"]
    assert differences(ours, theirs) == ["total_input_tokens: 80 and 90"]


def test_results_without_a_common_figure_are_refused():
    with pytest.raises(ConfigError, match="no figure in common"):
        compare({"completed": True}, {"completed": 1})
