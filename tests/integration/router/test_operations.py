"""Routes for operators and tools, over HTTP."""

import asyncio
from collections.abc import Callable
from dataclasses import replace

import pytest
from tokenizers import Tokenizer

from kvasir_protocol import metrics as names
from kvasir_protocol.view import ClusterView
from tests.fakes.controller import FakeController
from tests.fakes.replica import DEADLINE_S, FakeReplica
from tests.fakes.serving import MODEL_NAME, QUICK, SECRET, MakeSettings, serving, view_of
from tests.integration.router.conftest import MakeReplica

pytestmark = pytest.mark.anyio

CHAT = {"messages": [{"role": "user", "content": "hi"}]}

Pools = tuple[FakeReplica, FakeReplica]


async def test_health_follows_the_replicas(
    make_replica: MakeReplica, make_settings: Callable[..., MakeSettings]
) -> None:
    mixed = make_replica("mixed-0")
    async with serving(make_settings(), mixed) as server:
        response = await server.client.get("/health")
        assert (response.status_code, response.json()["status"]) == (200, "ok")
        await mixed.stop()
        await server.until_live(0)
        response = await server.client.get("/health")
        assert (response.status_code, response.json()["phase"]) == (503, "ready")
        assert (await server.client.post("/v1/chat/completions", json=CHAT)).status_code == 503


async def test_load_balancers_may_ask_for_the_head_of_health_alone(
    make_replica: MakeReplica, make_settings: Callable[..., MakeSettings]
) -> None:
    mixed = make_replica("mixed-0")
    async with serving(make_settings(), mixed) as server:
        response = await server.client.head("/health")
        assert (response.status_code, response.content) == (200, b"")
        await mixed.stop()
        await server.until_live(0)
        assert (await server.client.head("/health")).status_code == 503


async def test_request_to_a_router_that_has_just_begun_waits_for_its_replicas(
    make_replica: MakeReplica, make_settings: Callable[..., MakeSettings]
) -> None:
    mixed = make_replica("mixed-0")
    async with FakeController(SECRET, ClusterView(version=1, replicas=(), phase="ready")) as controller, mixed:
        settings = make_settings(replicas=(), controller_endpoint=controller.endpoint)
        async with serving(settings, patience=replace(QUICK, first_link_s=DEADLINE_S)) as server:
            asking = asyncio.create_task(server.client.post("/v1/chat/completions", json=CHAT))
            await controller.asked.wait()
            controller.view = view_of(mixed, version=2)
            assert (await asking).status_code == 200


async def test_request_is_refused_when_a_router_that_has_just_begun_reaches_nobody(
    make_settings: Callable[..., MakeSettings],
) -> None:
    async with serving(make_settings(controller_endpoint="tcp://127.0.0.1:1")) as server:
        response = await server.client.post("/v1/chat/completions", json=CHAT)
        assert (response.status_code, response.headers["Retry-After"]) == (503, "1")


async def test_replicas_and_phase_come_from_the_controller(
    make_replica: MakeReplica, make_settings: Callable[..., MakeSettings]
) -> None:
    mixed = make_replica("mixed-0")
    async with FakeController(SECRET, ClusterView(version=1, replicas=(), phase="loading")) as controller, mixed:
        settings = make_settings(replicas=(), controller_endpoint=controller.endpoint)
        async with serving(settings) as server:
            while (health := (await server.client.get("/health")).json())["phase"] == "starting":
                await controller.asked.wait()
            assert health["phase"] == "loading"
            controller.view = view_of(mixed, version=2)
            await server.until_live(1)
            assert (await server.client.post("/v1/chat/completions", json=CHAT)).status_code == 200


async def test_before_any_replica_is_up_the_context_is_the_models(make_settings: Callable[..., MakeSettings]) -> None:
    settings = make_settings(controller_endpoint="tcp://127.0.0.1:1")
    async with serving(settings) as server:
        (model,) = (await server.client.get("/v1/models")).json()["data"]
        assert model["max_model_len"] == 2048
        assert (await server.client.get("/health")).json()["phase"] == "starting"


async def test_status_tells_of_every_replica(pools: Pools, make_settings: Callable[..., MakeSettings]) -> None:
    async with serving(make_settings(), *pools) as server:
        await server.client.post("/v1/chat/completions", json=CHAT)
        await pools[1].stop()
        await server.until_live(1)
        status = (await server.client.get("/status")).json()
    assert (status["model"], status["view"]) == (MODEL_NAME, {"version": 1, "phase": "ready"})
    prefill, decode = status["replicas"]
    assert (prefill["id"], prefill["role"], prefill["state"]) == ("prefill-0", "prefill", "up")
    assert prefill["endpoint"] == pools[0].endpoint
    assert prefill["info"]["num_pages"] == 100
    assert (decode["id"], decode["state"], decode["stats"]) == ("decode-0", "down", None)


async def test_metrics_show_requests_and_replicas(pools: Pools, make_settings: Callable[..., MakeSettings]) -> None:
    async with serving(make_settings(), *pools) as server:
        for _ in range(2):
            await server.client.post("/v1/chat/completions", json={**CHAT, "max_tokens": 3})
        await server.client.get("/nowhere")
        assert await server.metric(f"{names.REQUEST_SUCCESS}_total") == 2
        assert await server.metric(f"{names.TIME_TO_FIRST_TOKEN}_count") == 2
        assert await server.metric(f"{names.INTER_TOKEN_LATENCY}_count") == 4
        assert await server.metric(f"{names.REQUEST_GENERATION_TOKENS}_sum") == 6
        assert await server.metric(f"{names.HTTP_ERRORS}_total") >= 1
        assert await server.metric(names.REPLICA_UP) == 2


async def test_tokenize_and_detokenize_are_inverse(
    pools: Pools, make_settings: Callable[..., MakeSettings], tokenizer: Tokenizer
) -> None:
    async with serving(make_settings(), *pools) as server:
        tokens = (await server.client.post("/tokenize", json={"prompt": "fox 😀"})).json()
        assert tokens == {
            "count": len(tokens["tokens"]),
            "max_model_len": 1000,
            "tokens": tokenizer.encode("fox 😀").ids,
        }
        text = (await server.client.post("/detokenize", json={"tokens": tokens["tokens"]})).json()
        assert text == {"prompt": "fox 😀"}
        chat = (await server.client.post("/tokenize", json=CHAT)).json()["tokens"]
        assert tokenizer.decode(chat, skip_special_tokens=False).endswith("<|im_start|>assistant\n")


async def test_request_id_names_the_answer(pools: Pools, make_settings: Callable[..., MakeSettings]) -> None:
    async with serving(make_settings(), *pools) as server:
        response = await server.client.post("/v1/chat/completions", json=CHAT, headers={"X-Request-Id": "mine"})
        assert response.headers["X-Request-Id"] == "mine"
        assert response.json()["id"] == "chatcmpl-mine"


async def test_version_is_told(make_settings: Callable[..., MakeSettings]) -> None:
    async with serving(make_settings(controller_endpoint="tcp://127.0.0.1:1")) as server:
        assert (await server.client.get("/version")).json()["version"].count(".") == 2
