import json
from typing import Any

import httpx
import pytest
from fastapi import FastAPI
from pydantic import BaseModel
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.types import Receive, Scope, Send

from kvasir_protocol.errors import InvalidRequest
from kvasir_router.express import Express, Lane
from kvasir_router.http_errors import ClientLeft

pytestmark = pytest.mark.anyio


class Body(BaseModel):
    number: int


async def answer(body: Body, request: Request) -> Response:
    match body.number:
        case 0:
            raise InvalidRequest("not that one", "number")
        case 1:
            raise RuntimeError("secret detail")
        case 2:
            raise ClientLeft
        case 3:
            raise HTTPException(413, "too large")
    return JSONResponse({"number": body.number, "path": request.url.path})


async def elsewhere(scope: Scope, receive: Receive, send: Send) -> None:
    await Response("elsewhere")(scope, receive, send)


async def ask(method: str = "POST", path: str = "/fast", **options: Any) -> httpx.Response:
    async def with_id(scope: Scope, receive: Receive, send: Send) -> None:
        scope["state"] = {"request_id": "r"}
        await Express(elsewhere, {"/fast": Lane(Body, answer)})(scope, receive, send)

    async with httpx.AsyncClient(transport=httpx.ASGITransport(with_id), base_url="http://router") as client:
        return await client.request(method, path, **options)


async def test_a_post_to_a_lane_is_answered_there() -> None:
    assert (await ask(json={"number": 7})).json() == {"number": 7, "path": "/fast"}
    kind = {"content-type": "application/vnd.api+json; charset=utf-8"}
    assert (await ask(content=b'{"number": 8}', headers=kind)).json()["number"] == 8


@pytest.mark.parametrize(("method", "path"), [("GET", "/fast"), ("POST", "/fast/"), ("POST", "/other")])
async def test_all_else_goes_to_the_application(method: str, path: str) -> None:
    assert (await ask(method, path)).text == "elsewhere"


@pytest.mark.parametrize(
    ("number", "status", "message"),
    [(0, 400, "not that one"), (1, 500, "internal error; see the router's log"), (3, 413, "too large")],
)
async def test_errors_have_openais_shape(number: int, status: int, message: str) -> None:
    response = await ask(json={"number": number})
    assert (response.status_code, response.json()["error"]["message"]) == (status, message)


async def test_nobody_is_answered_who_has_left() -> None:
    assert (await ask(json={"number": 2})).status_code == 499


BODIES = [b"", b"{", b"[]", b"null", b"\xff\xfe", b"[" * 100_000, b'{"number": ' + b"9" * 5000 + b"}", b"{}"]


@pytest.mark.parametrize("body", BODIES, ids=lambda body: repr(body[:12]))
async def test_a_bad_body_is_refused_as_the_application_refuses_it(body: bytes) -> None:
    from kvasir_router.http_errors import install_error_handlers

    app = FastAPI()
    install_error_handlers(app)

    @app.post("/fast")
    async def route(body: Body) -> None:
        raise AssertionError("not reached")

    headers = {"content-type": "application/json"}
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://router") as client:
        expected = await client.post("/fast", content=body, headers=headers)
    response = await ask(content=body, headers=headers)
    assert response.status_code == expected.status_code == 400
    if expected.json()["error"]["param"] is not None:
        assert response.json() == expected.json()


@pytest.mark.parametrize("headers", [{}, {"content-type": "text/plain"}])
async def test_a_body_that_is_not_said_to_be_json_is_refused(headers: dict[str, str]) -> None:
    response = await ask(content=json.dumps({"number": 7}).encode(), headers=headers)
    assert (response.status_code, "Content-Type: application/json" in response.text) == (400, True)
