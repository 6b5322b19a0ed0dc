"""Real replicas and a router that a controller placed: a decode replica becomes a prefill replica under load."""

import dataclasses
import threading
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest
import ray

from kvasir.demo import DEMO_MODEL_NAME, demo_model_path
from kvasir_cluster.actors import build_replica
from kvasir_cluster.creation import create_controller
from kvasir_cluster.spec import ControllerSpec
from kvasir_protocol.config import ClusterConfig, EngineConfig, ModelConfig, PoolConfig, RouterConfig

QUESTIONS = ("Who was Kvasir?", "What is a KV cache?", "What is a page?", "What does the router do?")
MAX_TOKENS = 96


def pools(prefill, decode):
    return (PoolConfig(role="prefill", replicas=prefill), PoolConfig(role="decode", replicas=decode))


class Served:
    """The demo model behind a router of the cluster's own."""

    def __init__(self, port: int) -> None:
        self.config = ClusterConfig(
            model=ModelConfig(path=str(demo_model_path()), served_name=DEMO_MODEL_NAME, dtype="float32"),
            engine=EngineConfig(device="cpu", num_threads=1, kv_cache_bytes=2**24, max_num_seqs=16),
            pools=pools(1, 2),
            router=RouterConfig(port=port),
        )
        spec = ControllerSpec(
            instance=uuid.uuid4().hex[:6],
            wish=self.config,
            config=self.config,
            secret=b"s" * 32,
            build_rank=build_replica,
            replica_host="",
            view_host="",
            view_port=0,
            places_routers=True,
        )
        self.controller = create_controller(spec, detached=False)
        self.url = f"http://127.0.0.1:{port}"

    def progress(self):
        return ray.get(self.controller.progress.remote())

    def want(self, config: ClusterConfig) -> None:
        ray.get(self.controller.apply.remote(config, config))

    def replicas(self) -> dict[str, dict]:
        """What the router knows, by id."""
        status = httpx.get(f"{self.url}/status", timeout=30, trust_env=False).json()
        return {replica["id"]: replica for replica in status["replicas"]}

    def process_ids(self) -> dict[str, int]:
        return {replica_id: replica["info"]["process_id"] for replica_id, replica in self.replicas().items()}

    def models(self) -> list[str]:
        models = httpx.get(f"{self.url}/v1/models", timeout=30, trust_env=False).json()["data"]
        return [model["id"] for model in models]

    def ask(self, question: str, model: str = DEMO_MODEL_NAME) -> str:
        body = {
            "model": model,
            "messages": [{"role": "user", "content": question}],
            "temperature": 0,
            "max_tokens": MAX_TOKENS,
            "ignore_eos": True,
        }
        response = httpx.post(f"{self.url}/v1/chat/completions", json=body, timeout=120, trust_env=False)
        response.raise_for_status()
        return str(response.json()["choices"][0]["message"]["content"])

    def close(self) -> None:
        ray.get(self.controller.stop.remote())
        ray.kill(self.controller, no_restart=True)


@pytest.fixture
def served(local_ray: None, free_port: int, wait_for) -> Iterator[Served]:
    served = Served(free_port)
    wait_for(lambda: served.progress().is_ready, "ready cluster")
    yield served
    served.close()


def test_a_replica_changes_its_role_under_load_and_no_answer_is_lost(served, wait_for):
    undisturbed = [served.ask(question) for question in QUESTIONS]
    pid = served.replicas()["decode-1"]["info"]["process_id"]
    is_enough = threading.Event()

    def ask_on(question: str) -> set[str]:
        """The different answers to one question, asked again and again."""
        heard = set()
        while not is_enough.is_set():
            heard.add(served.ask(question))
        return heard

    with ThreadPoolExecutor(len(QUESTIONS)) as clients:
        heard = [clients.submit(ask_on, question) for question in QUESTIONS]
        try:
            wait_for(lambda: served.replicas()["decode-1"]["num_inflight"] > 0, "stream on decode-1")
            served.want(dataclasses.replace(served.config, pools=pools(2, 1)))
            wait_for(lambda: served.replicas()["decode-1"]["role"] == "prefill", "new role")
        finally:
            is_enough.set()
        assert [answers.result() for answers in heard] == [{answer} for answer in undisturbed]
    assert sorted(served.replicas()) == ["decode-0", "decode-1", "prefill-0"]
    assert served.replicas()["decode-1"]["info"]["process_id"] == pid
    assert served.progress().is_ready
    assert served.ask(QUESTIONS[0]) == undisturbed[0]


def test_a_router_with_other_settings_takes_over_from_the_one_before(served, wait_for):
    router = dataclasses.replace(served.config.router, api_keys=("sesame",))
    served.want(dataclasses.replace(served.config, router=router))
    ask = {"url": f"{served.url}/v1/models", "timeout": 30, "trust_env": False}
    wait_for(lambda: httpx.get(**ask).status_code == 401, "router that asks for a key")
    assert httpx.get(**ask, headers={"Authorization": "Bearer sesame"}).status_code == 200


def test_a_model_with_another_name_answers_with_the_replicas_that_it_has(served, wait_for):
    undisturbed, before = served.ask(QUESTIONS[0]), served.process_ids()
    model = dataclasses.replace(served.config.model, served_name="other")
    served.want(dataclasses.replace(served.config, model=model))
    wait_for(lambda: served.models() == ["other"] and served.progress().is_ready, "router with the new name")
    assert served.ask(QUESTIONS[0], "other") == undisturbed
    assert served.process_ids() == before
