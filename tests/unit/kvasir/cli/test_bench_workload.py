import json

import pytest

from kvasir.bench.text_source import CountedWords, PlainWords
from kvasir.cli.bench_workload import find_text_source, read_trace


@pytest.mark.parametrize("answer", [None, 0])
def test_a_server_that_does_not_count_leaves_plain_words(answer):
    assert isinstance(find_text_source(None, lambda text: answer), PlainWords)


def test_a_server_that_counts_is_asked():
    source = find_text_source(None, lambda text: len(text.split()))
    assert isinstance(source, CountedWords)
    assert source.count("a b c") == 3


def test_a_trace_is_read_in_the_order_of_its_times(tmp_path):
    lines = [
        {"timestamp": second, "input_length": 3, "output_length": 1, "hash_ids": [second]} for second in (2, 0, 1, 9)
    ]
    path = tmp_path / "trace.jsonl"
    path.write_text("\n".join(map(json.dumps, lines)))
    assert [line.timestamp_ms for line in read_trace(path)] == [0, 1, 2, 9]
    assert [line.hash_ids for line in read_trace(path, num_lines=3)] == [(0,), (1,), (2,)]
