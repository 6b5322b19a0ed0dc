"""Everything that can go wrong, in OpenAI's shape: {"error": {"message", "type", "param", "code"}}."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException
from starlette.responses import Response

from kvasir_protocol.errors import (
    ContextTooLong,
    InvalidRequest,
    KvasirError,
    ModelNotFound,
    ServiceUnavailable,
    StreamLost,
)


class TooManyRequests(KvasirError):
    """The router has its hands full; ask again soon."""

    retry_after_s = 1.0


class ClientLeft(Exception):
    """The client closed the connection: nobody is there to answer."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ErrorAnswer:
    """One error as a client sees it."""

    status: int
    message: str
    kind: str
    param: str | None = None
    code: str | None = None
    retry_after_s: float | None = None

    def body(self) -> dict[str, Any]:
        return {"error": {"message": self.message, "type": self.kind, "param": self.param, "code": self.code}}

    def response(self) -> JSONResponse:
        headers = {}
        if self.retry_after_s is not None:
            headers["Retry-After"] = str(math.ceil(self.retry_after_s))
        if self.status == 401:
            headers["WWW-Authenticate"] = "Bearer"
        return JSONResponse(self.body(), self.status, headers)


def invalid(message: str, param: str | None = None, code: str | None = None, status: int = 400) -> ErrorAnswer:
    return ErrorAnswer(status=status, message=message, kind="invalid_request_error", param=param, code=code)


def answer_to(error: Exception) -> ErrorAnswer:
    """The answer to any error. One that nobody expected tells the client nothing of its inside."""
    match error:
        case ModelNotFound():
            return invalid(str(error), error.field, "model_not_found", 404)
        case ContextTooLong():
            return invalid(str(error), error.field, "context_length_exceeded")
        case InvalidRequest():
            return invalid(str(error), error.field)
        case TooManyRequests():
            return ErrorAnswer(
                status=429,
                message=str(error),
                kind="rate_limit_error",
                code="too_many_requests",
                retry_after_s=error.retry_after_s,
            )
        case ServiceUnavailable():
            code = "stream_lost" if isinstance(error, StreamLost) else "service_unavailable"
            return ErrorAnswer(
                status=503, message=str(error), kind="server_error", code=code, retry_after_s=error.retry_after_s
            )
        case _:
            return ErrorAnswer(status=500, message="internal error; see the router's log", kind="server_error")


NO_OBJECT = invalid("the body must be a JSON object, sent with Content-Type: application/json")


class BodyRefused(Exception):
    """A body that holds no request."""

    def __init__(self, answer: ErrorAnswer) -> None:
        super().__init__(answer.message)
        self.answer = answer


def answer_to_validation(errors: Sequence[Mapping[str, Any]]) -> ErrorAnswer:
    """pydantic's findings as one sentence that names the field."""
    first = errors[0]
    location = [part for part in first["loc"] if part != "body"]
    if first["type"] == "json_invalid":
        return invalid(f"the body is not JSON: {first['ctx']['error']} at character {first['loc'][-1]}")
    if not location:
        return NO_OBJECT
    field = str(location[0])
    # A field with several accepted types has one finding for each.
    findings = [error["msg"] for error in errors if field in map(str, error["loc"])]
    message = " or ".join(dict.fromkeys(findings))
    return invalid(f"{'.'.join(map(str, location[:1] if len(findings) > 1 else location))}: {message}", field)


def response_to(error: Exception, request: Request) -> Response:
    """The response to any error that comes before the answer begins."""
    match error:
        case BodyRefused():
            return error.answer.response()
        case RequestValidationError():
            return answer_to_validation(error.errors()).response()
        case HTTPException():
            response = invalid(_route_message(request, error), status=error.status_code).response()
            response.headers.update(error.headers or {})
            return response
        case ClientLeft():
            return Response(status_code=499)
        case _:
            return answer_to(error).response()


def install_error_handlers(app: FastAPI) -> None:
    """Every error of every route leaves in OpenAI's shape."""

    async def on_error(request: Request, error: Exception) -> Response:
        return response_to(error, request)

    for kind in (KvasirError, RequestValidationError, HTTPException, ClientLeft, Exception):
        app.add_exception_handler(kind, on_error)


def _route_message(request: Request, error: HTTPException) -> str:
    if error.status_code == 404:
        return f"there is no route {request.method} {request.url.path}"
    if error.status_code == 405:
        return f"{request.url.path} does not take {request.method}"
    return str(error.detail)
