"""A streamed answer of OpenAI's API, read as it comes."""

import json
from typing import Any

from kvasir.bench.records import Failure
from kvasir.bench.sse import EventReader

MAX_REPORTED_CHARS = 300

OK = 200


class AnswerReader:
    """chunk_s: when each chunk with text came. usage: the last that the server sent, {} if none.

    ended_s: when the last chunk that belongs to a choice came; None before the first.
    """

    def __init__(self) -> None:
        self.chunk_s: list[float] = []
        self.ended_s: float | None = None
        self.usage: dict[str, Any] = {}
        self._texts: list[str] = []
        self._events = EventReader()
        self._failure: Failure | None = None
        self._is_finished = False
        self._error_body = b""

    @property
    def text(self) -> str:
        return "".join(self._texts)

    def feed(self, status: int, piece: bytes, now_s: float) -> None:
        """A piece of the body that came now."""
        if status != OK:
            self._error_body += piece
            return
        for event in self._events.feed(piece):
            self._read(event, now_s)

    def _read(self, event: bytes, now_s: float) -> None:
        if event == b"[DONE]":
            self._is_finished = True
            return
        try:
            chunk = json.loads(event)
            if "error" in chunk:
                self._fail("error in the stream", _message(chunk))
            self.usage = chunk.get("usage") or self.usage
            for choice in chunk.get("choices") or ():
                self._read_choice(choice, now_s)
        except (ValueError, TypeError, AttributeError, KeyError):
            self._fail("malformed stream", event.decode(errors="replace"))

    def _read_choice(self, choice: dict[str, Any], now_s: float) -> None:
        self._is_finished |= choice.get("finish_reason") is not None
        self.ended_s = now_s
        if text := _text_of(choice):
            self.chunk_s.append(now_s)
            self._texts.append(text)

    def _fail(self, cause: str, detail: str) -> None:
        self._failure = self._failure or Failure(cause, detail[:MAX_REPORTED_CHARS])

    def failure(self, status: int) -> Failure | None:
        """Why the answer, which is over, is none; None if it is one."""
        if status != OK:
            return Failure(f"HTTP {status}", _reason(self._error_body)[:MAX_REPORTED_CHARS])
        if self._failure is None and self._events.has_rest:
            self._fail("malformed stream", "it ends within an event")
        if self._failure is None and not self._is_finished:
            self._fail("incomplete stream", "it ends without a finish_reason and without [DONE]")
        if self._failure is None and self.ended_s is None:
            self._fail("empty stream", "no chunk held a choice")
        return self._failure


def _text_of(choice: dict[str, Any]) -> str:
    """Of a chat also what it thinks."""
    if "text" in choice:
        return choice["text"] or ""
    delta = choice["delta"]
    return delta.get("content") or delta.get("reasoning_content") or delta.get("reasoning") or ""


def _message(body: dict[str, Any]) -> str:
    error = body["error"]
    return str(error["message"] if isinstance(error, dict) else error)


def _reason(body: bytes) -> str:
    try:
        return _message(json.loads(body))
    except (ValueError, KeyError, TypeError):
        return body.decode(errors="replace").strip()
