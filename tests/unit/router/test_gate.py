import subprocess

import httpx
import pytest
from prometheus_client import CollectorRegistry
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.types import Receive, Scope, Send

from kvasir_protocol.metrics import HTTP_ERRORS
from kvasir_router.gate import ApiKeys, Gate, tenant_of_key
from kvasir_router.metrics import MetricFamilies

pytestmark = pytest.mark.anyio


@pytest.mark.parametrize(
    ("authorization", "expected"),
    [
        ("Bearer first", True),
        ("bearer second", True),
        ("Bearer  first ", True),
        ("Bearer third", False),
        ("Bearer ", False),
        ("Basic first", False),
        ("first", False),
        ("", False),
        (None, False),
    ],
)
def test_only_known_bearer_keys_are_admitted(authorization: str | None, *, expected: bool) -> None:
    assert ApiKeys(["first", "second"]).admits(authorization) is expected


def test_without_keys_everybody_is_admitted() -> None:
    assert ApiKeys([]).admits(None)


def test_tenant_is_told_by_the_key_and_does_not_tell_it() -> None:
    keys = ApiKeys(["first", "second"])
    first, second = keys.tenant("Bearer first"), keys.tenant("bearer  second ")
    assert first == tenant_of_key("first") != second
    assert "first" not in first and len(first) == 16


def test_tenant_is_what_the_shell_makes_of_the_key() -> None:
    command = "printf 'kvasir tenant %s' first | sha256sum | cut -c1-16"
    printed = subprocess.run(["sh", "-c", command], capture_output=True, text=True, check=True).stdout
    assert printed.strip() == tenant_of_key("first")


@pytest.mark.parametrize("authorization", [None, "", "Bearer anything"])
def test_without_keys_all_are_one_tenant(authorization: str | None) -> None:
    assert ApiKeys([]).tenant(authorization) == ""


async def echo(scope: Scope, receive: Receive, send: Send) -> None:
    """Answers with the request's id and the length of its body."""
    request = Request(scope, receive)
    text = f"{request.state.request_id} {len(await request.body())}"
    response: Response = PlainTextResponse(text, 404 if scope["path"] == "/missing" else 200)
    await response(scope, receive, send)


class Fixture:
    def __init__(self, *keys: str) -> None:
        self.registry = CollectorRegistry()
        gate = Gate(echo, ApiKeys(keys), 10, MetricFamilies(self.registry))
        self.client = httpx.AsyncClient(transport=httpx.ASGITransport(gate), base_url="http://router")


async def test_clients_request_id_is_kept_and_returned() -> None:
    response = await Fixture().client.get("/", headers={"X-Request-Id": "mine-1"})
    assert response.headers["X-Request-Id"] == "mine-1"
    assert response.text.startswith("mine-1 ")


@pytest.mark.parametrize("given", ["", "with space", "x" * 129])
async def test_request_id_of_an_odd_form_is_replaced(given: str) -> None:
    response = await Fixture().client.get("/", headers={"X-Request-Id": given})
    assert len(response.headers["X-Request-Id"]) == 32


async def test_missing_key_is_answered_401_on_every_path_but_health() -> None:
    client = Fixture("key").client
    assert (await client.get("/health")).status_code == 200
    for path in ("/", "/v1/models", "/metrics", "/missing", "/health/", "//health"):
        response = await client.get(path)
        assert response.status_code == 401, path
        assert response.json()["error"]["code"] == "invalid_api_key"
        assert response.headers["WWW-Authenticate"] == "Bearer"
        assert response.headers["X-Request-Id"]


async def test_key_opens_the_gate() -> None:
    assert (await Fixture("key").client.get("/", headers={"Authorization": "Bearer key"})).status_code == 200


async def test_body_up_to_the_limit_passes() -> None:
    assert (await Fixture().client.post("/", content=b"x" * 10)).text.endswith(" 10")


async def test_body_that_says_it_is_too_large_is_refused_unread() -> None:
    response = await Fixture().client.post("/", content=b"x" * 11)
    assert response.status_code == 413
    assert "10 bytes" in response.json()["error"]["message"]


async def test_errors_are_counted_by_status() -> None:
    fixture = Fixture()
    await fixture.client.get("/missing")
    assert fixture.registry.get_sample_value(f"{HTTP_ERRORS}_total", {"code": "404"}) == 1
