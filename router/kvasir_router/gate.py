"""What every HTTP request passes first: its id, the API key, the size of its body."""

import hashlib
import hmac
import re
import uuid
from collections.abc import Sequence

from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from kvasir_router.http_errors import invalid
from kvasir_router.metrics import MetricFamilies

OPEN_PATHS = frozenset({"/health"})
"""Load balancers ask without a key."""

_REQUEST_ID = re.compile(r"[\x21-\x7e]{1,128}")


def tenant_of_key(key: str) -> str:
    """The tenant's name: 16 hex digits that tell keys apart and don't give them away.

    In a shell: printf 'kvasir tenant %s' "$KEY" | sha256sum | cut -c1-16
    """
    return hashlib.sha256(b"kvasir tenant " + key.encode("utf-8", "surrogateescape")).hexdigest()[:16]


class ApiKeys:
    """Compares a key with all known ones in constant time; without any, everybody may pass."""

    def __init__(self, keys: Sequence[str]) -> None:
        self._digests = [self._digest(key) for key in keys]

    def admits(self, authorization: str | None) -> bool:
        if not self._digests:
            return True
        scheme, _, key = (authorization or "").partition(" ")
        given = self._digest(key.strip())
        matches = [hmac.compare_digest(given, known) for known in self._digests]
        return any(matches) and scheme.lower() == "bearer"

    def tenant(self, authorization: str | None) -> str:
        """Whose request it is, of those that are admitted; without keys all are one tenant, the nameless one."""
        return tenant_of_key((authorization or "").partition(" ")[2].strip()) if self._digests else ""

    @staticmethod
    def _digest(key: str) -> bytes:
        return hashlib.sha256(key.encode("utf-8", "surrogateescape")).digest()


class Gate:
    """ASGI middleware around the whole application, unknown routes included.

    Puts the request's id in scope["state"]["request_id"]: the client's X-Request-Id, or a new one; and in
    scope["state"]["tenant"] a name for the owner of the API key.
    """

    def __init__(self, app: ASGIApp, keys: ApiKeys, max_body_bytes: int, metrics: MetricFamilies) -> None:
        self._app = app
        self._keys = keys
        self._max_body_bytes = max_body_bytes
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        request_id = headers.get("x-request-id", "")
        if not _REQUEST_ID.fullmatch(request_id):
            request_id = uuid.uuid4().hex
        scope.setdefault("state", {})["request_id"] = request_id
        scope["state"]["tenant"] = self._keys.tenant(headers.get("authorization"))
        app = self._refusal(scope["path"], headers) or self._app
        await app(scope, self._counting(receive), self._labelling(send, request_id))

    def _refusal(self, path: str, headers: Headers) -> ASGIApp | None:
        if path not in OPEN_PATHS and not self._keys.admits(headers.get("authorization")):
            message = "missing or wrong API key; send it as Authorization: Bearer KEY"
            return invalid(message, code="invalid_api_key", status=401).response()
        length = headers.get("content-length", "0")
        if length.isdecimal() and int(length) > self._max_body_bytes:
            return invalid(self._too_large(), status=413).response()
        return None

    def _too_large(self) -> str:
        return f"the body is larger than {self._max_body_bytes} bytes"

    def _counting(self, receive: Receive) -> Receive:
        """For a body sent in chunks, whose length no header tells."""
        num_bytes = 0

        async def counted_receive() -> Message:
            nonlocal num_bytes
            message = await receive()
            num_bytes += len(message.get("body", b""))
            if num_bytes > self._max_body_bytes:
                raise HTTPException(413, self._too_large())
            return message

        return counted_receive

    def _labelling(self, send: Send, request_id: str) -> Send:
        async def labelled_send(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message)["X-Request-Id"] = request_id
                if message["status"] >= 400:
                    self._metrics.count_error(message["status"])
            await send(message)

        return labelled_send
