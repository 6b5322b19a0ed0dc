"""Pieces as OpenAI's JSON. A streamed answer's chunks and a whole answer are written by the same functions."""

from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any, Literal, Protocol

from kvasir_router.openai.generation import Generation
from kvasir_router.pieces import Piece, ScoredToken
from kvasir_router.sse import DONE_FRAME, FRAME_END, frame, to_json
from kvasir_router.tokenise import TextCodec

LOWEST_LOGPROB = -9999.0
"""JSON has no -inf; vLLM's stand-in."""

Json = dict[str, Any]


class ChoiceFormat(Protocol):
    """How one kind of answer writes a choice."""

    @property
    def id_prefix(self) -> str: ...

    def object_name(self, *, is_chunk: bool) -> str: ...

    def opening(self, piece: Piece) -> Json | None:
        """A choice's first chunk, before any text of the answer."""
        ...

    def choice(self, piece: Piece, *, is_chunk: bool) -> Json: ...

    def shown(self, choices: Sequence[Piece]) -> Sequence[Piece]:
        """Those of a whole answer's choices that the caller sees, numbered anew."""
        ...


@dataclass(frozen=True, slots=True)
class ChatFormat:
    codec: TextCodec
    shows_token_ids: bool
    id_prefix: Literal["chatcmpl"] = "chatcmpl"

    def object_name(self, *, is_chunk: bool) -> str:
        return "chat.completion.chunk" if is_chunk else "chat.completion"

    def opening(self, piece: Piece) -> Json | None:
        delta = {"role": "assistant", "content": ""}
        return {"index": piece.choice_index, "delta": delta, "logprobs": None, "finish_reason": None}

    def choice(self, piece: Piece, *, is_chunk: bool) -> Json:
        content: Json
        if is_chunk:
            content = {"delta": {"content": piece.text} if piece.text else {}}
        else:
            content = {"message": {"role": "assistant", "content": piece.text, "refusal": None}}
        return choice_json(piece, content, self._logprobs(piece.scored), shows_token_ids=self.shows_token_ids)

    def shown(self, choices: Sequence[Piece]) -> Sequence[Piece]:
        return choices

    def _logprobs(self, scored: Sequence[ScoredToken]) -> Json | None:
        if not scored:
            return None
        return {"content": [self._scored(token) for token in scored], "refusal": None}

    def _scored(self, token: ScoredToken) -> Json:
        top = zip(token.logprobs.top_token_ids, token.logprobs.top_logprobs, strict=True)
        return {
            **self._entry(token.token_id, token.logprobs.logprob),
            "top_logprobs": [self._entry(token_id, logprob) for token_id, logprob in top],
        }

    def _entry(self, token_id: int, logprob: float) -> Json:
        return {
            "token": self.codec.token_text(token_id),
            "logprob": finite(logprob),
            "bytes": list(self.codec.token_bytes(token_id)),
        }


def finite(logprob: float) -> float:
    return max(logprob, LOWEST_LOGPROB)


def choice_json(piece: Piece, content: Json, logprobs: Json | None, *, shows_token_ids: bool) -> Json:
    choice = {
        "index": piece.choice_index,
        **content,
        "logprobs": logprobs,
        "finish_reason": piece.finish_reason,
        "stop_reason": piece.stop_reason,
    }
    if shows_token_ids:
        choice["token_ids"] = piece.token_ids
    return choice


@dataclass(frozen=True, slots=True, kw_only=True)
class AnswerHead:
    """The fields that all chunks of one answer share. created: Unix time in seconds."""

    answer_id: str
    created: int
    model: str
    fingerprint: str

    def around(self, object_name: str, choices: list[Json]) -> Json:
        return {
            "id": self.answer_id,
            "object": object_name,
            "created": self.created,
            "model": self.model,
            "system_fingerprint": self.fingerprint,
            "choices": choices,
        }


async def whole_answer(generation: Generation, answer_format: ChoiceFormat, head: AnswerHead) -> Json:
    """The answer in one object, once every choice has ended."""
    collected: list[list[Piece]] = [[] for _ in range(generation.num_choices)]
    async with aclosing(generation.pieces()) as pieces:
        async for piece in pieces:
            collected[piece.choice_index].append(piece)
    shown = answer_format.shown([_joined(pieces_of_one) for pieces_of_one in collected])
    choices = [answer_format.choice(piece, is_chunk=False) for piece in shown]
    return {**head.around(answer_format.object_name(is_chunk=False), choices), "usage": generation.usage()}


def _joined(pieces: Sequence[Piece]) -> Piece:
    """One choice's pieces as a single one."""
    last = pieces[-1]
    return Piece(
        choice_index=last.choice_index,
        text="".join(piece.text for piece in pieces),
        token_ids=tuple(token_id for piece in pieces for token_id in piece.token_ids),
        scored=tuple(token for piece in pieces for token in piece.scored),
        finish_reason=last.finish_reason,
        stop_reason=last.stop_reason,
        prompt=pieces[0].prompt,
    )


async def frames(
    generation: Generation, answer_format: ChoiceFormat, head: AnswerHead, *, include_usage: bool
) -> AsyncGenerator[bytes, None]:
    """The answer as server-sent events. A piece that shows nothing (its text is held back) makes no frame.

    What belongs together comes in one item, for each is a call of the system: the last choice's end, usage and DONE.
    """
    chunk = ChunkWriter(head, answer_format.object_name(is_chunk=True), include_usage=include_usage)
    opened: set[int] = set()
    num_open = generation.num_choices

    async with aclosing(generation.pieces()) as pieces:
        async for piece in pieces:
            item = b""
            if piece.choice_index not in opened:
                opened.add(piece.choice_index)
                if (first := answer_format.opening(piece)) is not None:
                    item = chunk.around(first)
            if piece.text or piece.scored or piece.finish_reason is not None:
                item += chunk.around(answer_format.choice(piece, is_chunk=True))
            if piece.finish_reason is not None:
                num_open -= 1
            if not num_open:
                yield item + chunk.ending(generation.usage())
            elif item:
                yield item


class ChunkWriter:
    """Writes chunks of one answer: what they have in common is turned into JSON once."""

    def __init__(self, head: AnswerHead, object_name: str, *, include_usage: bool) -> None:
        self._head = head
        self._object_name = object_name
        self._includes_usage = include_usage
        self._before = frame(head.around(object_name, [])).removesuffix(b"]}" + FRAME_END)
        self._after = (b'],"usage":null}' if include_usage else b"]}") + FRAME_END

    def around(self, choice: Json) -> bytes:
        """The frame of a chunk with one choice."""
        return self._before + to_json(choice) + self._after

    def ending(self, usage: Json) -> bytes:
        """What follows the last choice's last chunk."""
        if not self._includes_usage:
            return DONE_FRAME
        return frame({**self._head.around(self._object_name, []), "usage": usage}) + DONE_FRAME
