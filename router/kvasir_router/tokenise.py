"""Text to token ids and back, for one model directory. Everything here may be called from several threads."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from kvasir_protocol.errors import CheckpointError, ContextTooLong, InvalidRequest
from kvasir_router.chat_template import ChatTemplate
from kvasir_router.model_files import GenerationDefaults, TextSettings, read_text_settings

WORD_START = "\u2581"
"""SentencePiece's mark for a space in front of a word."""


class TextCodec:
    """A model's tokenizer, chat template and sampling defaults.

    eos_token_ids: the tokens that end an answer, generation_config.json's before config.json's and the tokenizer's.
    vocab_size: ids below it are valid in a prompt. context_tokens: None where config.json names no limit.
    """

    def __init__(self, tokenizer: Tokenizer, settings: TextSettings) -> None:
        tokenizer.no_truncation()
        tokenizer.no_padding()
        self._tokenizer = tokenizer
        self._chat_template = ChatTemplate(settings.chat_templates, settings.special_tokens)
        self._bytes_of: dict[int, bytes] = {}
        decoders = _decoder_names(tokenizer)
        self.is_byte_level = decoders == ["ByteLevel"]
        self.byte_fallback_ids = _byte_fallback_ids(tokenizer) if "ByteFallback" in decoders else {}
        self.special_token_ids = frozenset(
            token_id for token_id, token in tokenizer.get_added_tokens_decoder().items() if token.special
        )
        eos = tokenizer.token_to_id(settings.special_tokens.get("eos_token", ""))
        self.eos_token_ids = settings.eos_token_ids or (() if eos is None else (eos,))
        self.vocab_size = settings.vocab_size or tokenizer.get_vocab_size()
        self.context_tokens = settings.context_tokens
        self.max_text_chars = _max_text_chars(tokenizer, settings.context_tokens)
        self.defaults: GenerationDefaults = settings.defaults

    @classmethod
    def from_directory(cls, directory: Path) -> "TextCodec":
        """Read a directory in Hugging Face format. Raises CheckpointError that says what is missing or broken."""
        if not directory.is_dir():
            raise CheckpointError(f"there is no model directory {directory}")
        path = directory / "tokenizer.json"
        if not path.is_file():
            raise CheckpointError(
                f"{directory} has no tokenizer.json; make one with transformers: "
                "AutoTokenizer.from_pretrained(DIRECTORY).save_pretrained(DIRECTORY)"
            )
        try:
            tokenizer = Tokenizer.from_file(str(path))
        except Exception as error:  # the library raises bare Exception
            raise CheckpointError(f"{path} is not a tokenizer: {error}") from error
        return cls(tokenizer, read_text_settings(directory))

    def encode(self, text: str, *, add_special_tokens: bool = True, field: str = "prompt") -> list[int]:
        """Token ids of text.

        Raises InvalidRequest for `field` if text holds half of a surrogate pair, ContextTooLong if it could not fit the
        model's context however few tokens it made: it is not worth the time to count them.
        """
        if self.max_text_chars is not None and len(text) > self.max_text_chars:
            raise ContextTooLong(
                f"{field} has {len(text)} characters; the context of {self.context_tokens} tokens can't hold more than "
                f"{self.max_text_chars}: shorten it",
                field,
            )
        try:
            ids: list[int] = self._tokenizer.encode(text, add_special_tokens=add_special_tokens).ids
        except TypeError as error:
            raise InvalidRequest(f"{field} holds half of a surrogate pair, which is no character", field) from error
        return ids

    def render_chat(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        add_generation_prompt: bool = True,
        tools: Sequence[Mapping[str, Any]] | None = None,
        variables: Mapping[str, Any] | None = None,
    ) -> str:
        """The model's prompt text for chat messages; its special tokens are in the text, so encode it without."""
        return self._chat_template.render(
            messages, add_generation_prompt=add_generation_prompt, tools=tools, variables=variables
        )

    def decode(self, token_ids: Sequence[int], *, skip_special_tokens: bool = True) -> str:
        """The text of all ids at once. An id without a token has no text."""
        return self._tokenizer.decode(token_ids, skip_special_tokens=skip_special_tokens)

    def token_bytes(self, token_id: int) -> bytes:
        """The bytes that one token stands for; they may be part of a character."""
        found = self._bytes_of.get(token_id)
        if found is None:
            found = self._bytes_of[token_id] = self._read_bytes(token_id)
        return found

    def token_text(self, token_id: int) -> str:
        """One token for display; a part of a character shows as U+FFFD."""
        return self.token_bytes(token_id).decode("utf-8", "replace")

    def _read_bytes(self, token_id: int) -> bytes:
        token = self._tokenizer.id_to_token(token_id)
        if token is None:
            return b""
        if self.is_byte_level:
            # Added tokens may hold characters that stand for no byte: these are text as they are.
            whole = all(character in _BYTE_OF_CHARACTER for character in token)
            return bytes(map(_BYTE_OF_CHARACTER.__getitem__, token)) if whole else token.encode()
        if token_id in self.byte_fallback_ids:
            return self.byte_fallback_ids[token_id]
        return token.replace(WORD_START, " ").encode()


_SLACK = 4
"""Normalisers may join characters before the text is cut into tokens; none is known to join more."""


def _max_text_chars(tokenizer: Tokenizer, context_tokens: int | None) -> int | None:
    """More characters than this make too many tokens, even if each were the longest of the vocabulary."""
    if context_tokens is None:
        return None
    return context_tokens * max(map(len, tokenizer.get_vocab())) * _SLACK


def _decoder_names(tokenizer: Tokenizer) -> list[str]:
    """Types of the decoders in tokenizer.json, in order."""
    decoder = json.loads(tokenizer.to_str())["decoder"] or {"type": ""}
    steps = decoder["decoders"] if decoder["type"] == "Sequence" else [decoder]
    return [step["type"] for step in steps]


def _byte_fallback_ids(tokenizer: Tokenizer) -> dict[int, bytes]:
    """Ids of the tokens <0x00> to <0xFF> that spell characters outside the vocabulary."""
    ids = {tokenizer.token_to_id(f"<0x{byte:02X}>"): bytes([byte]) for byte in range(256)}
    return {token_id: value for token_id, value in ids.items() if token_id is not None}


def _byte_alphabet() -> dict[str, int]:
    """GPT-2's printable stand-ins for the 256 bytes: printable Latin-1 as itself, the others from U+0100 on."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    alphabet = {chr(byte): byte for byte in printable}
    others = (byte for byte in range(256) if byte not in set(printable))
    alphabet.update({chr(0x100 + offset): byte for offset, byte in enumerate(others)})
    return alphabet


_BYTE_OF_CHARACTER = _byte_alphabet()
