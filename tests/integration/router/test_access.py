"""Keys and limits over HTTP."""

import asyncio
from collections.abc import Callable

import httpx
import pytest

from kvasir_protocol.messages import Submit
from kvasir_router.gate import tenant_of_key
from tests.fakes.replica import FakeReplica
from tests.fakes.serving import MakeSettings, serving
from tests.integration.router.conftest import MakeReplica

pytestmark = pytest.mark.anyio

CHAT = {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 2}


async def test_every_route_but_health_asks_for_a_key(
    pools: tuple[FakeReplica, FakeReplica], make_settings: Callable[..., MakeSettings]
) -> None:
    async with serving(make_settings(api_keys=("good",)), *pools, api_key="good") as server:
        paths = (await server.client.get("/openapi.json")).json()["paths"]
        routes = [(method, path) for path, methods in paths.items() for method in methods]
        routes += [("get", "/openapi.json"), ("get", "/docs"), ("get", "/nowhere"), ("delete", "/v1/models")]
        assert len(routes) > 12
        async with httpx.AsyncClient(base_url=server.url) as stranger:
            for method, path in routes:
                response = await stranger.request(method, path.replace("{name}", "x"))
                assert (response.status_code == 200) == (path == "/health"), path
                if path != "/health":
                    assert response.status_code == 401, path
            wrong = await stranger.post("/v1/chat/completions", json=CHAT, headers={"Authorization": "Bearer bad"})
            assert wrong.json()["error"]["code"] == "invalid_api_key"
        assert (await server.client.post("/v1/chat/completions", json=CHAT)).status_code == 200


async def test_tenant_priorities_and_deadline_reach_the_replica(
    make_replica: MakeReplica, make_settings: Callable[..., MakeSettings]
) -> None:
    mixed = make_replica("mixed-0")
    async with serving(make_settings(api_keys=("good",)), mixed, api_key="good") as server:
        body = {**CHAT, "priority": 3, "cache_priority": 7, "deadline_s": 60}
        assert (await server.client.post("/v1/chat/completions", json=body)).status_code == 200
    request = mixed.got(Submit)[0].request
    assert (request.tenant, request.priority, request.cache_priority) == (tenant_of_key("good"), 3, 7)
    assert request.deadline_s is not None and 0 < request.deadline_s <= 60


async def test_keys_share_no_cached_pages_whatever_salts_they_send(
    make_replica: MakeReplica, make_settings: Callable[..., MakeSettings]
) -> None:
    mixed = make_replica("mixed-0")
    async with serving(make_settings(api_keys=("one", "two")), mixed) as server:
        for key, salt in (("one", "x"), ("two", "x"), ("one", ""), ("two", ""), ("one", "x")):
            headers = {"Authorization": f"Bearer {key}"}
            response = await server.client.post(
                "/v1/chat/completions", json={**CHAT, "cache_salt": salt}, headers=headers
            )
            assert response.status_code == 200
    salts = [message.request.cache_salt for message in mixed.got(Submit)]
    assert (len(salts), len(set(salts))) == (5, 4)
    assert salts[0] == salts[-1]


async def test_streams_beyond_the_limit_are_answered_429(
    make_replica: MakeReplica, make_settings: Callable[..., MakeSettings]
) -> None:
    mixed = make_replica("mixed-0")
    mixed.faults.pause_at = 0
    async with serving(make_settings(max_inflight_requests=2), mixed) as server:
        first = asyncio.create_task(server.client.post("/v1/chat/completions", json={**CHAT, "n": 2}))
        await mixed.until(lambda replica: len(replica.held) == 2)
        refused = await server.client.post("/v1/chat/completions", json=CHAT)
        assert refused.status_code == 429
        assert refused.headers["Retry-After"] == "1"
        mixed.faults.resumed.set()
        assert (await first).status_code == 200
        assert (await server.client.post("/v1/chat/completions", json=CHAT)).status_code == 200


@pytest.mark.parametrize("in_chunks", [False, True])
async def test_body_over_the_limit_is_answered_413(
    make_replica: MakeReplica, make_settings: Callable[..., MakeSettings], *, in_chunks: bool
) -> None:
    async def chunks() -> object:
        for _ in range(20):
            yield b"x" * 100

    async with serving(make_settings(max_body_bytes=1000), make_replica("mixed-0")) as server:
        content = chunks() if in_chunks else b"x" * 2000
        headers = {"Content-Type": "application/json"}
        response = await server.client.post("/v1/completions", content=content, headers=headers)  # type: ignore[arg-type]
        assert response.status_code == 413
        assert "larger than 1000 bytes" in response.json()["error"]["message"]
