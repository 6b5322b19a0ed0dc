"""Prompts out of a body, as token ids. A long one is tokenised in a thread, so that it stops no other stream."""

import asyncio
from collections.abc import Callable, Sequence
from typing import TypeVar

from kvasir_protocol.errors import InvalidRequest
from kvasir_router.openai.bodies import ChatBody, CompletionBody, TokenizeBody
from kvasir_router.tokenise import TextCodec

TokenIds = tuple[int, ...]

INLINE_CHARS = 2000
"""So many take half a millisecond; to a thread and back is a fifth of one, and more when it waits for its turn."""

T = TypeVar("T")


async def _off_loop(work: Callable[[], T], num_chars: int) -> T:
    """The result of work on a text of this length."""
    return work() if num_chars <= INLINE_CHARS else await asyncio.to_thread(work)


def _prompts_of(body: CompletionBody) -> Sequence[str | list[int]]:
    match body.prompt:
        case str():
            return [body.prompt]
        case [int(), *_]:
            return [body.prompt]  # type: ignore[list-item]  # pydantic checked that all are ids
        case _:
            return body.prompt  # type: ignore[return-value]  # texts or lists of ids


def echoed_texts(body: CompletionBody, codec: TextCodec) -> tuple[str, ...]:
    """Each prompt as text, for an answer that begins with it."""
    prompts = _prompts_of(body)
    return tuple(text if isinstance(text, str) else _text_of(text, codec) for text in prompts)


def _text_of(ids: Sequence[int], codec: TextCodec) -> str:
    check_ids(ids, codec, "prompt")
    return codec.decode(ids, skip_special_tokens=False)


async def completion_prompts(body: CompletionBody, codec: TextCodec) -> list[TokenIds]:
    """One entry per prompt of the body. Raises InvalidRequest for an empty one or an unknown id."""
    prompts = _prompts_of(body)
    if not prompts:
        raise InvalidRequest("prompt must not be empty", "prompt")

    def encode_all() -> list[TokenIds]:
        return [_prompt_ids(prompt, codec, add_special_tokens=body.add_special_tokens) for prompt in prompts]

    return await _off_loop(encode_all, sum(map(len, prompts)))


def _prompt_ids(prompt: str | list[int], codec: TextCodec, *, add_special_tokens: bool) -> TokenIds:
    if isinstance(prompt, str):
        ids = tuple(codec.encode(prompt, add_special_tokens=add_special_tokens))
    else:
        ids = tuple(prompt)
        check_ids(ids, codec, "prompt")
    if not ids:
        raise InvalidRequest("prompt must not be empty", "prompt")
    return ids


def check_ids(ids: Sequence[int], codec: TextCodec, field: str) -> None:
    """Raises InvalidRequest for an id outside the vocabulary."""
    if ids and (min(ids) < 0 or max(ids) >= codec.vocab_size):
        wrong = next(token_id for token_id in ids if not 0 <= token_id < codec.vocab_size)
        raise InvalidRequest(f"{field}: token id {wrong} is not in the vocabulary of {codec.vocab_size}", field)


async def chat_prompt(body: ChatBody | TokenizeBody, codec: TextCodec, *, add_special_tokens: bool = False) -> TokenIds:
    """The messages as the model's template writes them, which as a rule spells all special tokens itself."""
    messages = [message.for_template() for message in body.messages or ()]

    def render() -> TokenIds:
        text = codec.render_chat(
            messages, add_generation_prompt=body.add_generation_prompt, variables=body.chat_template_kwargs
        )
        return tuple(codec.encode(text, add_special_tokens=add_special_tokens, field="messages"))

    ids = await _off_loop(render, sum(len(message["content"] or "") for message in messages))
    if not ids:
        raise InvalidRequest("the messages make an empty prompt", "messages")
    return ids
