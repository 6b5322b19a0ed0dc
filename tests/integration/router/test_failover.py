"""Answers over HTTP while replicas fail."""

import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from kvasir_protocol.ids import RequestId
from kvasir_protocol.messages import Rejected
from tests.fakes.replica import FakeReplica
from tests.fakes.serving import QUICK, MakeSettings, Serving, serving
from tests.integration.router.conftest import TEXT, MakeReplica

pytestmark = pytest.mark.anyio

BODY = {"messages": [{"role": "user", "content": "hello"}], "stream": True}


async def streamed(server: Serving) -> list[dict[str, Any]]:
    """Status 200, and all events; the last has no [DONE] behind it if it is an error."""
    response = await server.client.post("/v1/chat/completions", json=BODY)
    assert response.status_code == 200
    lines = [line.removeprefix("data: ") for line in response.text.split("\n\n") if line]
    events = [json.loads(line) for line in lines if line != "[DONE]"]
    assert (lines[-1] == "[DONE]") == ("error" not in events[-1])
    return events


def text_of(events: list[dict[str, Any]]) -> str:
    return "".join(event["choices"][0]["delta"].get("content", "") for event in events)


async def test_death_of_prefill_is_not_seen_by_the_client(
    pools: tuple[FakeReplica, FakeReplica], make_settings: Callable[..., MakeSettings]
) -> None:
    pools[0].faults.die_at = 0
    async with serving(make_settings(), *pools) as server:
        assert text_of(await streamed(server)) == TEXT
        assert await server.metric("kvasir:handover_fallbacks_total") == 1


async def test_death_of_decode_is_not_seen_by_the_client(
    make_replica: MakeReplica, make_settings: Callable[..., MakeSettings]
) -> None:
    replicas = [make_replica("prefill-0"), make_replica("decode-0"), make_replica("decode-1")]
    replicas[1].faults.die_at = 6
    async with serving(make_settings(), *replicas) as server:
        assert text_of(await streamed(server)) == TEXT
        assert await server.metric("kvasir:streams_replayed_total") == 1


async def test_stream_that_nobody_can_finish_ends_with_an_error_frame(
    make_replica: MakeReplica, make_settings: Callable[..., MakeSettings]
) -> None:
    mixed = make_replica("mixed-0")
    mixed.faults.die_at = 3
    async with serving(make_settings(), mixed, patience=replace(QUICK, replica_wait_s=0.1)) as server:
        events = await streamed(server)
        assert events[-1]["error"]["code"] == "stream_lost"
        assert TEXT.startswith(text_of(events[:-1]))


async def test_full_replicas_are_answered_503_with_a_time_to_wait(
    make_replica: MakeReplica, make_settings: Callable[..., MakeSettings]
) -> None:
    mixed = make_replica("mixed-0")
    mixed.faults.rejection = Rejected(request_id=RequestId(""), message="no pages left", is_invalid=False)
    async with serving(make_settings(), mixed) as server:
        response = await server.client.post("/v1/chat/completions", json=BODY)
        assert response.status_code == 503
        assert response.headers["Retry-After"] == "1"
        assert response.json()["error"]["message"] == "no pages left"
        assert response.headers["content-type"] == "application/json"


async def test_answer_that_nobody_can_finish_is_503(
    make_replica: MakeReplica, make_settings: Callable[..., MakeSettings]
) -> None:
    mixed = make_replica("mixed-0")
    mixed.faults.silent_at = 3
    async with serving(make_settings(), mixed, patience=replace(QUICK, silence_s=0.05)) as server:
        response = await server.client.post("/v1/chat/completions", json={**BODY, "stream": False})
        assert response.status_code == 503
        assert "lost 4 times" in response.json()["error"]["message"]
