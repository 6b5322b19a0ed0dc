"""The comparison of servers, with stub servers as peers."""

import json
import sys
from pathlib import Path

import pytest

from kvasir.demo import demo_model_path

ROOT = Path(__file__).parents[3]

STUB = f"{sys.executable} -m kvasir.bench.stub_server {{port}}"


@pytest.fixture(autouse=True)
def benches(monkeypatch: pytest.MonkeyPatch) -> None:
    """They are run from the root of the repository, and not installed."""
    monkeypatch.syspath_prepend(ROOT)


def compare(home: Path, *arguments: str) -> None:
    from bench.peers.__main__ import main

    small = ["--rounds", "2", "--concurrency", "2", "--per-place", "1", "--warmups", "1"]
    main(["--home", str(home), "--model", str(demo_model_path()), *small, *arguments])


def rows_of(output: str, peer: str) -> list[str]:
    return [line for line in output.splitlines() if line.startswith(f"{peer} ")]


def test_every_peer_has_a_row_whatever_became_of_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    peers = "one,other,broken,llama-server,vllm-cpu,transformers serve,transformers static"
    also = [f"--also=one={STUB}", f"--also=other={STUB}", f"--also=broken={sys.executable} -c 1/0"]
    compare(tmp_path, "--only", peers, *also, "--output", str(tmp_path / "runs.json"))
    output = capsys.readouterr().out
    for peer in ("llama-server", "vllm-cpu", "transformers serve", "transformers static"):
        assert "not installed" in rows_of(output, peer)[0]
    assert "ZeroDivisionError" in rows_of(output, "broken")[0]
    for peer in ("one", "other"):
        assert rows_of(output, peer)[0].count(" to ") == 2, "a median and a spread for each cell"
        assert f"{peer}: 0 failed requests" in output
    runs = json.loads((tmp_path / "runs.json").read_text())
    assert [(run["peer"], len(run["cells"])) for run in runs if run["cells"]] == [
        ("one", 2), ("one", 2), ("other", 2), ("other", 2),
    ]  # fmt: skip
    cells = [cell for run in runs for cell in run["cells"]]
    assert {(cell["shape"]["name"], cell["concurrency"]) for cell in cells} == {("128/64", 2), ("1000+32/32", 2)}
    assert {(cell["completed"], cell["total_output_tokens"]) for cell in cells} == {(8, 512), (8, 256)}


def test_a_peer_that_refuses_requests_is_a_problem_and_no_error(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    program = tmp_path / "refusing"
    program.write_text(
        f"#!{sys.executable}\n"
        "import sys\n"
        "from http.server import BaseHTTPRequestHandler, HTTPServer\n"
        "class Handler(BaseHTTPRequestHandler):\n"
        "    def do_GET(self): self.send_response(200); self.end_headers()\n"
        "    def do_POST(self): self.send_response(500); self.end_headers()\n"
        "HTTPServer(('127.0.0.1', int(sys.argv[1])), Handler).serve_forever()\n"
    )
    program.chmod(0o755)
    compare(tmp_path, "--only", "refusing", f"--also=refusing={program} {{port}}")
    assert "failed: a warm-up request failed: HTTP 500" in rows_of(capsys.readouterr().out, "refusing")[0]


def test_peers_take_turns_in_beginning(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    compare(tmp_path, "--only", "vllm-cpu,llama-server")
    told = [line.split(", ")[2].partition(":")[0] for line in capsys.readouterr().err.splitlines()]
    assert told == ["llama-server", "vllm-cpu", "vllm-cpu", "llama-server"]


def test_static_batches_of_transformers_answer_every_request_in_full(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    here = ["--transformers-venv", str(Path(sys.executable).parents[1]), "--threads", "1", "--rounds", "1"]
    compare(tmp_path, "--only", "transformers static", *here, "--output", str(tmp_path / "runs.json"))
    (run,) = json.loads((tmp_path / "runs.json").read_text())
    assert run["problem"] is None
    assert [(cell["failures"], cell["total_output_tokens"]) for cell in run["cells"]] == [({}, 512), ({}, 256)]
    assert all(cell["total_input_tokens"] in (8 * 128, 8 * 1032) for cell in run["cells"])


def test_unknown_peers_and_models_end_with_a_line(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="no peer nobody"):
        compare(tmp_path, "--only", "nobody")
    with pytest.raises(SystemExit, match="'stub' is not NAME=COMMAND"):
        compare(tmp_path, "--also", "stub")
    with pytest.raises(SystemExit, match="bench/peers/setup"):
        compare(tmp_path, "--only", "vllm-cpu", "--model", str(tmp_path))
