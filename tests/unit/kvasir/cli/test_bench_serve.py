"""The whole command against a stub server."""

import asyncio
import json
import os
import signal
import threading
from contextlib import contextmanager

import pytest

from kvasir.bench.ceiling import stub_process
from kvasir.bench.stub_server import canned, stub_server
from kvasir.cli.main import main

VLLM_KEYS = {
    "date", "endpoint_type", "backend", "label", "model_id", "tokenizer_id", "num_prompts", "request_rate",
    "burstiness", "max_concurrency", "duration", "completed", "failed", "total_input_tokens", "total_output_tokens",
    "request_throughput", "request_goodput", "output_throughput", "total_token_throughput", "input_lens",
    "output_lens", "ttfts", "itls", "generated_texts", "errors", "latencies", "start_times", "queue_times",
    "max_output_tokens_per_s", "max_concurrent_requests",
    *(f"{part}_{metric}_ms" for part in ("mean", "median", "std", "p99") for metric in ("ttft", "tpot", "itl")),
}  # fmt: skip
"""Of `vllm bench serve --save-result --save-detailed`, as its own tools read them."""


@pytest.fixture(scope="module")
def url():
    with stub_process() as url:
        yield url


@pytest.fixture(autouse=True)
def no_key_in_the_environment(monkeypatch):
    monkeypatch.delenv("KVASIR_API_KEY", raising=False)
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)


def bench(url, *arguments):
    sizes = ["--num-prompts", "4", "--input-len", "5", "--output-len", "3"]
    return main(["bench", "serve", "--url", url, "--model", "stub", *sizes, "--disable-tqdm", *map(str, arguments)])


def test_result_has_vllms_keys_and_an_entry_for_each_request(url, tmp_path, capsys):
    save = ["--save-detailed", "--result-dir", tmp_path / "new", "--result-filename", "r.json"]
    more = ["--goodput", "ttft:60000", "--metadata", "gpu=none", "--percentile-metrics", "ttft,tpot,itl,e2el"]
    assert bench(url, *save, *more, "--metric-percentiles", "50,99") == 0
    result = json.loads((tmp_path / "new" / "r.json").read_text())
    assert set(result) >= VLLM_KEYS
    assert (result["completed"], result["total_output_tokens"], result["gpu"]) == (4, 12, "none")
    assert result["request_goodput"] == result["request_throughput"]
    assert {len(result[key]) for key in ("ttfts", "itls", "errors", "output_lens", "generated_texts")} == {4}
    printed = capsys.readouterr().out
    assert "completed requests" in printed
    assert "end to end (e2el)" in printed
    assert "p50" in printed


def test_without_details_the_file_is_small_and_named_as_vllms(url, tmp_path):
    assert bench(url, "--save-result", "--result-dir", tmp_path, "--max-concurrency", "2", "--request-rate", "500") == 0
    (file,) = tmp_path.iterdir()
    assert file.name.startswith("openai-500.0qps-concurrency2-stub-")
    assert not {"ttfts", "errors", "generated_texts"} & set(json.loads(file.read_text()))


@pytest.mark.parametrize("backend", ["openai", "openai-chat"])
def test_conversations_are_answered_turn_by_turn(url, tmp_path, backend):
    more = ["--dataset-name", "multi-turn", "--multi-turn-num-turns", "3", "--backend", backend]
    assert bench(url, *more, "--save-result", "--result-dir", tmp_path, "--result-filename", "r") == 0
    assert json.loads((tmp_path / "r").read_text())["completed"] == 12


def test_data_sets_come_from_files(url, tmp_path):
    sharegpt = tmp_path / "s.json"
    sharegpt.write_text(json.dumps([{"conversations": [{"value": "who is it then"}, {"value": "it is not he"}]}]))
    assert bench(url, "--dataset-name", "sharegpt", "--dataset-path", sharegpt) == 0
    trace = tmp_path / "t.jsonl"
    line = {"timestamp": 10, "input_length": 20, "output_length": 2, "hash_ids": [4]}
    trace.write_text(f"{json.dumps(line)}\n{json.dumps({**line, 'timestamp': 0})}\n")
    more = ["--save-result", "--result-dir", tmp_path, "--result-filename", "r"]
    assert bench(url, "--dataset-name", "mooncake", "--dataset-path", trace, "--trace-speed", "10", *more) == 0
    assert json.loads((tmp_path / "r").read_text())["completed"] == 2


def test_the_ceiling_of_the_client_is_told_beside_the_results(url, tmp_path, capsys):
    more = ["--save-result", "--result-dir", tmp_path, "--result-filename", "r", "--max-concurrency", "2"]
    assert bench(url, "--ceiling", "--num-warmups", "2", *more) == 0
    ceiling = json.loads((tmp_path / "r").read_text())["ceiling"]
    assert min(ceiling.values()) > 0
    assert "ceiling of this client" in capsys.readouterr().out


@contextmanager
def server_in_a_thread(answer):
    """A stub server beside the test, which runs the command in this thread."""
    loop, started, urls = asyncio.new_event_loop(), threading.Event(), []
    stop = asyncio.Event()

    async def serve():
        async with stub_server(answer) as url:
            urls.append(url)
            started.set()
            await stop.wait()

    thread = threading.Thread(target=loop.run_until_complete, args=[serve()])
    thread.start()
    assert started.wait(10)
    try:
        yield urls[0]
    finally:
        loop.call_soon_threadsafe(stop.set)
        thread.join()
        loop.close()


def test_interrupting_keeps_what_is_done(tmp_path, capsys):
    num_asked = 0

    async def answer(body):
        nonlocal num_asked
        if "max_tokens" in body:
            num_asked += 1
        if num_asked == 3:
            os.kill(os.getpid(), signal.SIGINT)
            await asyncio.Event().wait()
        async for piece in canned(body):
            yield piece

    with server_in_a_thread(answer) as url:
        more = ["--max-concurrency", "1", "--save-result", "--result-dir", tmp_path, "--result-filename", "r"]
        assert bench(url, *more) == 130
    result = json.loads((tmp_path / "r").read_text())
    assert (result["completed"], result["aborted"], result["not_sent"], result["failed"]) == (2, 1, 1, 0)
    assert "stopped early: 1 requests cut, 1 not sent" in capsys.readouterr().out


def refuse(reason):
    async def answer(body):
        yield b"HTTP/1.1 503 No\r\ncontent-length: %d\r\n\r\n%b" % (len(reason), reason)

    return answer


def test_failures_are_shown_by_cause_and_nothing_but_failures_is_exit_code_1(capsys):
    with server_in_a_thread(refuse(b"full")) as url:
        assert bench(url) == 1
    printed = capsys.readouterr().out
    assert "failed, HTTP 503: 4" in printed
    assert "for example: HTTP 503: full" in printed


def test_a_warm_up_that_fails_is_one_line_and_exit_code_1(capsys):
    with server_in_a_thread(refuse(b"full")) as url:
        assert bench(url, "--num-warmups", "1") == 1
    assert capsys.readouterr().err == "kvasir: error: a warm-up request failed: HTTP 503: full\n"


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--num-prompts", "0"], "--num-prompts must be above 0"),
        (["--random-range-ratio", "1"], "--random-range-ratio must be at least 0 and below 1"),
        (["--request-rate", "0"], "--request-rate and --burstiness must be above 0"),
        (["--ramp-up-strategy", "linear"], "--ramp-up-strategy needs"),
        (["--ramp-up-strategy", "linear", "--request-rate", "3"], "leave out --request-rate"),
        (["--percentile-metrics", "ttft,speed"], "'speed' is none of ttft"),
        (["--metric-percentiles", "99,101"], "--metric-percentiles lie between 0 and 100"),
        (["--metric-percentiles", "most"], "--metric-percentiles: could not convert"),
        (["--goodput", "itl:5"], "--goodput: 'itl:5' is not one of ttft:MS"),
        (["--goodput", "ttft:x"], "--goodput: 'ttft:x'"),
        (["--header", "nonsense"], "--header: 'nonsense' is not NAME=VALUE"),
        (["--dataset-name", "sharegpt"], "--dataset-name sharegpt needs --dataset-path"),
        (["--dataset-path", "x"], "--dataset-name random takes no --dataset-path"),
        (["--tokenizer", "/nowhere"], "--tokenizer /nowhere"),
        (["--url", "localhost"], "--base-url 'localhost' is no address"),
    ],
)
def test_what_can_not_be_is_one_line_and_exit_code_1(url, capsys, arguments, told):
    assert bench(url, *arguments) == 1
    error = capsys.readouterr().err
    assert error.startswith("kvasir: error: ")
    assert told in error
    assert error.count("\n") == 1


@pytest.mark.parametrize(
    ("name", "text", "told"),
    [
        ("sharegpt", "{}", "is no ShareGPT file"),
        ("sharegpt", "no", "can't be read"),
        ("mooncake", '{"timestamp": 1}', "is no Mooncake trace"),
        ("mooncake", "\n", "holds no request"),
    ],
)
def test_a_file_that_is_no_data_set_is_refused(url, capsys, tmp_path, name, text, told):
    (tmp_path / "f").write_text(text)
    assert bench(url, "--dataset-name", name, "--dataset-path", tmp_path / "f") == 1
    assert told in capsys.readouterr().err


def test_a_trace_takes_no_rate(url, capsys, tmp_path):
    (tmp_path / "f").write_text('{"timestamp": 1, "input_length": 1, "output_length": 1, "hash_ids": [1]}')
    assert bench(url, "--dataset-name", "mooncake", "--dataset-path", tmp_path / "f", "--request-rate", "2") == 1
    assert "use --trace-speed" in capsys.readouterr().err


def test_misuse_is_exit_code_2(url, capsys):
    for arguments in (["--extra-body", "[]"], ["--num-prompts", "many"], ["--dataset-name", "sonnet"]):
        with pytest.raises(SystemExit) as ended:
            bench(url, *arguments)
        assert ended.value.code == 2
        assert capsys.readouterr().err.count("\n") == 1


def test_nobody_listening_is_told(capsys):
    assert main(["bench", "serve", "--url", "http://127.0.0.1:9"]) == 1
    assert "nothing listens on http://127.0.0.1:9" in capsys.readouterr().err
