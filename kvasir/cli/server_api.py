"""A running server as the other commands see it: over its HTTP API, with errors that say what to do."""

import json
import os
from collections.abc import Generator, Iterator, Sequence
from typing import Any

import httpx

from kvasir_protocol.errors import InvalidRequest, ServiceUnavailable

CONNECT_TIMEOUT_S = 5.0

SILENCE_TIMEOUT_S = 600.0
"""A long prompt may take its time before the first token, and others may be before us."""

Message = dict[str, str]


class ServerApi:
    """Raises ServiceUnavailable and InvalidRequest with a line for the person at the terminal."""

    def __init__(self, url: str, api_key: str | None) -> None:
        key = api_key or os.environ.get("KVASIR_API_KEY")
        self._url = url.rstrip("/").removesuffix("/v1")
        self._http = httpx.Client(
            base_url=self._url,
            headers={"Authorization": f"Bearer {key}"} if key else {},
            timeout=httpx.Timeout(SILENCE_TIMEOUT_S, connect=CONNECT_TIMEOUT_S),
            # A proxy of the environment has no business between this terminal and a server that the user named.
            trust_env=False,
        )

    def status(self) -> dict[str, Any]:
        return self._get("/status")

    def first_model(self) -> str:
        """The name of the model that is served, or of the first where there are several."""
        return str(self._get("/v1/models")["data"][0]["id"])

    def count_tokens(self, model: str, text: str) -> int | None:
        """Of a prompt as the server counts it; None where it has no /tokenize such as ours and vLLM's."""
        try:
            response = self._http.post("/tokenize", json={"model": model, "prompt": text})
            return len(response.json()["tokens"]) if response.is_success else None
        except httpx.HTTPError as error:
            raise self._unreachable(error) from error
        except (ValueError, KeyError, TypeError):
            return None

    def _get(self, path: str) -> dict[str, Any]:
        try:
            response = self._http.get(path)
            _raise_for_status(response)
            body: dict[str, Any] = response.json()
        except httpx.HTTPError as error:
            raise self._unreachable(error) from error
        except ValueError as error:
            raise ServiceUnavailable(f"{self._url} answers, but not as Kvasir does; check --url") from error
        return body

    def stream_chat(self, model: str, messages: Sequence[Message], max_tokens: int | None) -> Generator[str]:
        """Pieces of the answer as they come. Closing the iterator ends the request."""
        body: dict[str, Any] = {"model": model, "messages": list(messages), "stream": True}
        if max_tokens is not None:
            body["max_completion_tokens"] = max_tokens
        try:
            with self._http.stream("POST", "/v1/chat/completions", json=body) as response:
                if response.is_error:
                    response.read()
                    _raise_for_status(response)
                for line in response.iter_lines():
                    if line.startswith("data: ") and line != "data: [DONE]":
                        yield from _text_of(json.loads(line.removeprefix("data: ")))
        except httpx.HTTPError as error:
            raise self._unreachable(error) from error

    def _unreachable(self, error: httpx.HTTPError) -> ServiceUnavailable:
        if isinstance(error, httpx.ConnectError | httpx.ConnectTimeout):
            return ServiceUnavailable(f"nothing listens on {self._url}; start it with `kvasir serve` or give --url")
        return ServiceUnavailable(f"{self._url} broke off: {error or type(error).__name__}")


def _raise_for_status(response: httpx.Response) -> None:
    if response.status_code == httpx.codes.UNAUTHORIZED:
        raise InvalidRequest("the server asks for a key; give --api-key KEY or set KVASIR_API_KEY")
    if response.is_error:
        raise ServiceUnavailable(f"{response.url.path} answers {response.status_code}: {_message_of(response)}")


def _message_of(response: httpx.Response) -> str:
    try:
        return str(response.json()["error"]["message"])
    except (ValueError, KeyError, TypeError):
        return response.reason_phrase


def _text_of(chunk: dict[str, Any]) -> Iterator[str]:
    if "error" in chunk:
        raise ServiceUnavailable(str(chunk["error"].get("message", "the server broke off without a reason")))
    for choice in chunk.get("choices", ()):
        if text := choice.get("delta", {}).get("content"):
            yield text
