import json
import math

import pytest

from kvasir.bench.results import file_name, load, rate_in_json, save
from kvasir_protocol.errors import ConfigError


def test_files_are_called_as_vllm_calls_them():
    assert file_name("openai", math.inf, None, "org/m", "D") == "openai-infqps-m-D.json"
    assert file_name("x", 2.5, 8, "m", "D") == "x-2.5qps-concurrency8-m-D.json"


def test_an_infinite_rate_is_a_word():
    assert (rate_in_json(math.inf), rate_in_json(2.0)) == ("inf", 2.0)


def test_what_was_saved_is_loaded(tmp_path):
    result = {"request_throughput": 1.0, "ttfts": [1.0]}
    save(result, tmp_path / "a" / "r.json", detailed=True)
    assert load(tmp_path / "a" / "r.json") == result
    save(result, tmp_path / "r.json", detailed=False)
    assert json.loads((tmp_path / "r.json").read_text()) == {"request_throughput": 1.0}


def test_a_place_that_takes_no_file_is_told(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="can't write"):
        save({}, tmp_path / "file" / "r.json", detailed=True)
