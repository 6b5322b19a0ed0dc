"""Asks an OpenAI-compatible server, streaming, and records what the client sees."""

import asyncio
import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from kvasir.bench.answer import AnswerReader
from kvasir.bench.http_client import BrokenOff, ConnectFailed, HttpClient, Origin
from kvasir.bench.records import Failure, Record

Clock = Callable[[], float]

Message = Mapping[str, str]

COMPLETIONS_PATH, CHAT_PATH = "/v1/completions", "/v1/chat/completions"


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """The server and what all requests to it have in common. extra_body: added to each; None takes a field away."""

    origin: Origin
    model: str
    is_chat: bool = False
    path: str | None = None
    headers: Mapping[str, str] = field(default_factory=dict)
    extra_body: Mapping[str, Any] = field(default_factory=dict)
    ignore_eos: bool = False
    timeout_s: float = 3600.0

    def body(self, messages: Sequence[Message], max_tokens: int) -> bytes:
        """JSON of one request. For completions the messages are one text, as they follow one another."""
        asked: dict[str, Any] = {"model": self.model, "stream": True, "stream_options": {"include_usage": True}}
        if self.is_chat:
            asked |= {"messages": list(messages), "max_completion_tokens": max_tokens}
        else:
            asked |= {"prompt": "".join(message["content"] for message in messages), "max_tokens": max_tokens}
        if self.ignore_eos:
            asked["ignore_eos"] = True
        asked |= self.extra_body
        return json.dumps({name: value for name, value in asked.items() if value is not None}).encode()


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """One request. num_tokens: of the prompt, None if unknown. planned_s, queue_s: as in Record."""

    messages: Sequence[Message]
    num_tokens: int | None
    max_tokens: int
    planned_s: float
    queue_s: float = 0.0


class LoadClient:
    """Many requests at a time to one server."""

    def __init__(self, target: Target, clock: Clock = time.perf_counter) -> None:
        self._target = target
        self._path = target.path or (CHAT_PATH if target.is_chat else COMPLETIONS_PATH)
        self._http = HttpClient(target.origin, target.headers)
        self._clock = clock

    async def ask(self, question: Question) -> Record:
        """Never raises for what a server may do: that is the record's failure."""
        body = self._target.body(question.messages, question.max_tokens)
        reader, clock = AnswerReader(), self._clock
        failure: Failure | None
        was_retried = False
        sent_s = clock()
        try:
            async with asyncio.timeout(self._target.timeout_s):
                status, was_retried = await self._http.post(
                    self._path, body, lambda status, piece: reader.feed(status, piece, clock())
                )
            failure = reader.failure(status)
        except TimeoutError:
            failure = Failure("timeout", f"not done in {self._target.timeout_s:g} s")
        except ConnectFailed as error:
            failure = Failure("no connection", str(error))
        except BrokenOff as error:
            failure = Failure("broken off in mid-stream" if reader.chunk_s else "broken off before text", str(error))
        record = self._record(question, reader, sent_s, failure)
        return replace(record, was_retried=True) if was_retried else record

    def _record(self, question: Question, reader: AnswerReader, sent_s: float, failure: Failure | None) -> Record:
        num_output = _usage(reader, "completion_tokens")
        has_ended = failure is None and reader.ended_s is not None
        return Record(
            planned_s=question.planned_s,
            queue_s=question.queue_s,
            sent_s=sent_s,
            ended_s=reader.ended_s if has_ended and reader.ended_s is not None else self._clock(),
            chunk_s=tuple(reader.chunk_s),
            num_prompt_tokens=_usage(reader, "prompt_tokens") or question.num_tokens or 0,
            num_output_tokens=len(reader.chunk_s) if num_output is None else num_output,
            counted_by="chunks" if num_output is None else "usage",
            text=reader.text,
            failure=failure,
        )

    def close(self) -> None:
        self._http.close()


def _usage(reader: AnswerReader, name: str) -> int | None:
    value = reader.usage.get(name)
    return value if isinstance(value, int) else None
