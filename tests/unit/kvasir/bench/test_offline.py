import json
from itertools import count

import pytest

from kvasir import LLM
from kvasir.bench.offline import measure_latency, measure_throughput
from kvasir.bench.workloads import Turn
from kvasir.cli.main import main


def seconds():
    """A clock that moves two seconds with each look."""
    return map(float, count(0, 2)).__next__


def test_throughput_counts_every_token_of_every_prompt():
    with LLM(kv_cache_memory_bytes=2**24, num_threads=1) as llm:
        turns = [Turn(" the page", 2, 3), Turn(" a", 1, 5)]
        result = measure_throughput(llm, turns, seconds()).to_json()
        assert len(measure_latency(llm, [turns, turns[:1]], seconds()).latencies_s) == 2
    assert (result["num_requests"], result["elapsed_time"], result["output_tokens_per_second"]) == (2, 2.0, 4.0)
    assert result["total_num_tokens"] == 8 + 3


def test_commands_write_vllms_keys(tmp_path, capsys):
    small = ["--input-len", "4", "--output-len", "2", "--num-threads", "1", "--output-json", str(tmp_path / "r")]
    assert main(["bench", "throughput", "--num-prompts", "2", *small]) == 0
    throughput = json.loads((tmp_path / "r").read_text())
    assert (throughput["num_requests"], throughput["total_num_tokens"]) == (2, 12)
    assert "output tokens/s" in capsys.readouterr().out
    assert main(["bench", "latency", "--num-iters", "3", "--num-iters-warmup", "0", "--batch-size", "1", *small]) == 0
    latency = json.loads((tmp_path / "r").read_text())
    assert len(latency["latencies"]) == 3
    assert set(latency["percentiles"]) == {"10", "25", "50", "75", "90", "99"}


@pytest.mark.parametrize("bench", [["throughput", "--num-prompts", "2"], ["latency", "--num-iters", "1"]])
def test_steps_are_a_servers_unless_their_size_is_said(bench, capsys):
    """A server's steps have a token for each sequence that may run; a size that was said must do so itself."""
    small = ["--input-len", "4", "--output-len", "2", "--num-threads", "1", "--max-num-seqs", "3000"]
    assert main(["bench", *bench, *small]) == 0
    assert main(["bench", *bench, *small, "--max-num-batched-tokens", "2048"]) == 1
    assert "max_num_batched_tokens (2048) must be at least" in capsys.readouterr().err


def test_sizes_and_models_that_cannot_be_are_refused(capsys):
    assert main(["bench", "throughput", "--num-prompts", "0"]) == 1
    assert "--num-prompts must be at least 1" in capsys.readouterr().err
    assert main(["bench", "throughput", "--max-num-batched-tokens", "0"]) == 1
    assert "--max-num-batched-tokens must be at least 1" in capsys.readouterr().err
    assert main(["bench", "latency", "--model", "/nowhere"]) == 1
    assert "no model folder /nowhere" in capsys.readouterr().err
    assert main(["bench", "startup", "--num-iters", "0"]) == 1
    assert "--num-iters" in capsys.readouterr().err
