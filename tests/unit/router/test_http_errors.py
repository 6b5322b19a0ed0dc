import json

import httpx
import pytest
from fastapi import FastAPI
from pydantic import ValidationError

from kvasir_protocol.errors import (
    ContextTooLong,
    InvalidRequest,
    ModelNotFound,
    ServiceUnavailable,
    StreamLost,
    WireError,
)
from kvasir_router.http_errors import TooManyRequests, answer_to, answer_to_validation, install_error_handlers
from kvasir_router.openai.bodies import ChatBody, CompletionBody


@pytest.mark.parametrize(
    ("error", "status", "kind", "code"),
    [
        (InvalidRequest("m", "f"), 400, "invalid_request_error", None),
        (ContextTooLong("m", "f"), 400, "invalid_request_error", "context_length_exceeded"),
        (ModelNotFound("m", "f"), 404, "invalid_request_error", "model_not_found"),
        (TooManyRequests("m"), 429, "rate_limit_error", "too_many_requests"),
        (ServiceUnavailable("m"), 503, "server_error", "service_unavailable"),
        (StreamLost("m"), 503, "server_error", "stream_lost"),
    ],
)
def test_errors_have_openais_types_and_codes(error: Exception, status: int, kind: str, code: str | None) -> None:
    response = answer_to(error).response()
    param = getattr(error, "field", None)
    assert response.status_code == status
    assert json.loads(bytes(response.body)) == {"error": {"message": "m", "type": kind, "param": param, "code": code}}


@pytest.mark.parametrize("error", [WireError("secret detail"), RuntimeError("secret detail")])
def test_unexpected_errors_tell_nothing_of_the_inside(error: Exception) -> None:
    answer = answer_to(error)
    assert answer.status == 500
    assert "secret" not in answer.message


def test_waiting_time_is_whole_seconds() -> None:
    assert answer_to(ServiceUnavailable("m", retry_after_s=1.2)).response().headers["Retry-After"] == "2"


@pytest.mark.anyio
async def test_fault_in_a_route_is_answered_500_in_openais_shape() -> None:
    app = FastAPI()
    install_error_handlers(app)

    @app.get("/")
    async def faulty() -> None:
        raise RuntimeError("secret detail")

    transport = httpx.ASGITransport(app, raise_app_exceptions=False)
    async with httpx.AsyncClient(transport=transport, base_url="http://router") as client:
        response = await client.get("/")
    assert response.status_code == 500
    assert response.json()["error"]["type"] == "server_error"
    assert "secret" not in response.text


@pytest.mark.parametrize(
    ("body", "param", "message"),
    [
        ({"messages": [{"role": "user"}], "temperature": "hot"}, "temperature", "temperature: Input should be a valid"),
        ({}, "messages", "messages: Field required"),
        ({"messages": []}, "messages", "messages: List should have at least 1 item"),
        ({"messages": [{"role": 3}]}, "messages", "messages.0.role: Input should be a valid string"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "messages", "'text'"),
    ],
)
def test_validation_names_the_field(body: dict[str, object], param: str, message: str) -> None:
    with pytest.raises(ValidationError) as caught:
        ChatBody.model_validate(body)
    answer = answer_to_validation(caught.value.errors())
    assert answer.param == param
    assert message in answer.message


def test_field_with_several_types_gets_one_sentence() -> None:
    with pytest.raises(ValidationError) as caught:
        CompletionBody.model_validate({"prompt": 5})
    message = answer_to_validation(caught.value.errors()).message
    assert message == "prompt: Input should be a valid string or Input should be a valid list"
