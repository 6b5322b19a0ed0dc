"""The short way of the routes that generate: FastAPI's layers around one take longer than all that is done in it."""

import json
import logging
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from pydantic import BaseModel, ValidationError
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

from kvasir_router.http_errors import NO_OBJECT, BodyRefused, ClientLeft, answer_to_validation, invalid, response_to

logger = logging.getLogger(__name__)

B = TypeVar("B", bound=BaseModel)


@dataclass(frozen=True, slots=True)
class Lane(Generic[B]):
    """One path: what its POSTs hold, and who answers them."""

    body_type: type[B]
    answer: Callable[[B, Request], Awaitable[Response]]

    async def respond(self, request: Request) -> Response:
        """Raises BodyRefused for a body that is not of this type, and whatever the answer raises."""
        return await self.answer(_checked(self.body_type, await _read_json(request)), request)


class Express:
    """ASGI middleware: POSTs to the lanes' paths are answered here, all else by the application.

    An error before the answer begins leaves in OpenAI's shape, as the application's do.
    """

    def __init__(self, app: ASGIApp, lanes: Mapping[str, Lane[Any]]) -> None:
        self._app = app
        self._lanes = lanes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        is_post = scope["type"] == "http" and scope["method"] == "POST"
        lane = self._lanes.get(scope["path"]) if is_post else None
        if lane is None:
            await self._app(scope, receive, send)
            return
        request = Request(scope, receive, send)
        try:
            response = await lane.respond(request)
            await response(scope, receive, send)
        except Exception as error:
            answer = response_to(error, request)
            if answer.status_code == 500:
                logger.exception("%s: unexpected error", scope["state"]["request_id"])
            await answer(scope, receive, send)


async def _read_json(request: Request) -> object:
    if not _is_json(request.headers.get("content-type", "")):
        raise BodyRefused(NO_OBJECT)
    try:
        value: object = json.loads(await request.body())
    except ClientDisconnect:
        raise ClientLeft from None
    except json.JSONDecodeError as error:
        raise BodyRefused(invalid(f"the body is not JSON: {error.msg} at character {error.pos}")) from None
    except (ValueError, RecursionError):
        raise BodyRefused(invalid("the body is not JSON, or holds numbers or levels beyond measure")) from None
    return value


def _is_json(content_type: str) -> bool:
    kind = content_type.partition(";")[0].strip().lower()
    return kind == "application/json" or (kind.startswith("application/") and kind.endswith("+json"))


def _checked(body_type: type[B], value: object) -> B:
    try:
        return body_type.model_validate(value)
    except ValidationError as error:
        raise BodyRefused(answer_to_validation(error.errors())) from None
