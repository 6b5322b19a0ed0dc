"""The shapes in which LLM takes prompts."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias, cast

from kvasir_protocol.errors import InvalidRequest
from kvasir_router.tokenise import TextCodec

Prompt: TypeAlias = str | Sequence[int] | Mapping[str, Any]
"""Text, token ids, or {"prompt": text} or {"prompt_token_ids": ids}."""


@dataclass(frozen=True, slots=True)
class TokenPrompt:
    text: str | None
    token_ids: tuple[int, ...]


def read_prompts(prompts: Prompt | Sequence[Prompt], codec: TextCodec) -> list[TokenPrompt]:
    """One prompt or several, as ids. Raises InvalidRequest that says which one is of no known shape."""
    if isinstance(prompts, str | Mapping) or _is_ids(prompts):
        prompts = [cast(Prompt, prompts)]
    if not isinstance(prompts, Sequence):
        found = type(prompts).__name__
        raise InvalidRequest(f"prompts must be text, token ids, or a list of them, got {found}", "prompt")
    return [_read_prompt(cast(Prompt, prompt), index, codec) for index, prompt in enumerate(prompts)]


def _is_ids(prompt: object) -> bool:
    if not isinstance(prompt, Sequence) or isinstance(prompt, str):
        return False
    return len(prompt) > 0 and all(isinstance(item, int) and not isinstance(item, bool) for item in prompt)


def _read_prompt(prompt: Prompt, index: int, codec: TextCodec) -> TokenPrompt:
    if isinstance(prompt, Mapping):
        prompt = cast(Prompt, prompt.get("prompt_token_ids", prompt.get("prompt")))
    if isinstance(prompt, str):
        return TokenPrompt(prompt, tuple(codec.encode(prompt)))
    if _is_ids(prompt):
        return TokenPrompt(None, tuple(cast(Sequence[int], prompt)))
    raise InvalidRequest(f"prompt {index} is neither text nor a list of token ids (and may not be empty)", "prompt")
