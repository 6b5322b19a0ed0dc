import json

import pytest

from kvasir.cli.main import main

RESULT = {"completed": 3, "request_throughput": 2.0, "mean_ttft_ms": 10.0, "num_prompts": 3}


@pytest.fixture
def write(tmp_path):
    def write(name, **fields):
        path = tmp_path / name
        path.write_text(json.dumps({**RESULT, **fields}))
        return str(path)

    return write


def test_two_results_stand_side_by_side(write, capsys):
    assert main(["bench", "compare", write("a.json"), write("b.json", request_throughput=3.0)]) == 0
    rows = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert rows[0] == ["a", "b", "ratio"]
    assert ["request_throughput", "2.00", "3.00", "1.500"] in rows


def test_different_workloads_need_force(write, capsys):
    files = [write("a.json"), write("b.json", num_prompts=4)]
    assert main(["bench", "compare", *files]) == 1
    assert "num_prompts: 3 and 4" in capsys.readouterr().err
    assert main(["bench", "compare", *files, "--force"]) == 0


@pytest.mark.parametrize(("text", "told"), [("{}", "is no result of"), ("no", "can't be read")])
def test_what_is_no_result_is_refused(write, tmp_path, capsys, text, told):
    (tmp_path / "x.json").write_text(text)
    assert main(["bench", "compare", write("a.json"), str(tmp_path / "x.json")]) == 1
    assert told in capsys.readouterr().err
