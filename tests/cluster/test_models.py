"""Two models of one file, behind one port; the second in pools of several ranks."""

import httpx
import pytest
from serving import Serving, SharedServing

from kvasir.demo import DEMO_MODEL_NAME, demo_model_path

FILE = f"""\
models:
  - {{path: {demo_model_path()}, served_name: org/other, max_model_len: 64}}
pools:
  - {{role: mixed}}
  - {{role: prefill, model: org/other, tensor_parallel_size: 2}}
  - {{role: decode, model: org/other, pipeline_parallel_size: 2}}
"""


@pytest.fixture(scope="module")
def shared(tmp_path_factory):
    home = tmp_path_factory.mktemp("serve")
    (home / "models.yaml").write_text(FILE)
    with SharedServing(lambda: Serving(home, "--config", str(home / "models.yaml"))) as shared:
        yield shared


@pytest.fixture
def server(shared):
    return shared.ready()


def complete(server, model):
    body = {"model": model, "prompt": "Kvasir was", "max_tokens": 8, "temperature": 0}
    return httpx.post(f"{server.url}/v1/completions", json=body, timeout=60, trust_env=False)


def test_both_models_are_listed_with_what_each_can_hold(server):
    models = httpx.get(f"{server.url}/v1/models", timeout=10, trust_env=False).json()["data"]
    assert [model["id"] for model in models] == [DEMO_MODEL_NAME, "org/other"]
    assert models[1]["max_model_len"] == 64 < models[0]["max_model_len"]


def test_each_answers_under_its_name_and_no_other_does(server):
    answers = [complete(server, model) for model in (DEMO_MODEL_NAME, "org/other")]
    assert [answer.json()["model"] for answer in answers] == [DEMO_MODEL_NAME, "org/other"]
    texts = {answer.json()["choices"][0]["text"] for answer in answers}
    assert len(texts) == 1  # they are the same model under two names, of one rank and of several
    assert complete(server, "a third").status_code == 404


def test_the_second_models_gangs_hand_pages_over_by_shared_memory_and_the_first_has_one_pool(server, wait_for):
    assert server.replica_ids() == {"mixed-0", "org-other.prefill-0", "org-other.decode-0"}
    assert len(server.ranks()) == 1 + 2 + 2
    assert complete(server, "org/other").status_code == 200
    wait_for(lambda: server.handed_over_bytes("shared_memory") > 0, "word of pages that were handed over")


def test_nothing_stays_behind(server):
    assert server.stop() == 0
    assert server.leftovers(patience_s=10.0) == []
