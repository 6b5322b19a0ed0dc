"""Token ids to text while they come, so that the pieces join to the text of all ids at once, cut at a stop string."""

import codecs
from collections.abc import Sequence
from typing import Protocol

from kvasir_protocol.request import SamplingParams
from kvasir_router.tokenise import TextCodec

REPLACEMENT = "\ufffd"


class TextStream(Protocol):
    """Turns tokens into text that no later token can change."""

    def push(self, token_id: int) -> str: ...

    def flush(self) -> str: ...


class ByteTextStream:
    """For byte-level tokenizers (GPT-2, Llama 3, Qwen, …): their text is the UTF-8 of all tokens' bytes."""

    def __init__(self, codec: TextCodec) -> None:
        self._codec = codec
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")

    def push(self, token_id: int) -> str:
        return self._decoder.decode(self._codec.token_bytes(token_id))

    def flush(self) -> str:
        return self._decoder.decode(b"", final=True)


class WindowTextStream:
    """For every other tokenizer: decodes the last given-out piece's tokens with the pending ones.

        … [ tokens of the last piece ][ pending tokens ]
            `context`                  `pending`

    What the pending ones add to the context's text is new. Byte tokens (<0xE4>) stay pending until another token
    follows, because one bad byte changes how all its neighbours are read.
    """

    def __init__(self, codec: TextCodec) -> None:
        self._codec = codec
        self._context: list[int] = []
        self._pending: list[int] = []

    def push(self, token_id: int) -> str:
        self._pending.append(token_id)
        if token_id in self._codec.byte_fallback_ids:
            return ""
        text = self._pending_text()
        if not text or (text.endswith(REPLACEMENT) and not self._codec.byte_fallback_ids):
            return ""
        self._context, self._pending = self._pending, []
        return text

    def flush(self) -> str:
        text = self._pending_text()
        self._context, self._pending = self._pending, []
        return text

    def _pending_text(self) -> str:
        known = self._codec.decode(self._context, skip_special_tokens=False)
        return self._codec.decode([*self._context, *self._pending], skip_special_tokens=False)[len(known) :]


class StopMatcher:
    """Finds the stop string that is complete first, and holds back text that may yet become one.

    Looking at the text letter by letter would find the same, so it does not matter how the text is cut into pieces.
    Of two that end together, the longer counts.
    """

    def __init__(self, stop_strings: Sequence[str], *, keep_match: bool) -> None:
        self._stop_strings = stop_strings
        self._longest = max(map(len, stop_strings), default=0)
        self._keep_match = keep_match
        self._held = ""
        self.matched: str | None = None

    def push(self, text: str) -> str:
        """The text that is certain now. After a match everything is dropped."""
        if not self._stop_strings or not text:
            return text
        if self.matched is not None:
            return ""
        text = self._held + text
        if (match := self._first_match(text)) is not None:
            start, self.matched = match
            self._held = ""
            return text[: start + len(self.matched)] if self._keep_match else text[:start]
        num_held = self._num_held(text)
        self._held = text[len(text) - num_held :]
        return text[: len(text) - num_held]

    def flush(self) -> str:
        """What was held back: no stop string came of it."""
        held, self._held = self._held, ""
        return held

    def _first_match(self, text: str) -> tuple[int, str] | None:
        found = ((text.find(stop), stop) for stop in self._stop_strings)
        matches = [(start + len(stop), start, stop) for start, stop in found if start >= 0]
        if not matches:
            return None
        _, start, stop = min(matches)
        return start, stop

    def _num_held(self, text: str) -> int:
        for length in range(min(self._longest - 1, len(text)), 0, -1):
            if any(stop.startswith(text[-length:]) for stop in self._stop_strings):
                return length
        return 0


class Detokeniser:
    """The text of one answer, token by token.

    stop_string: the one that was found; the answer is over then. num_chars: decoded so far, held back ones included.
    The text of the first min_tokens tokens is not searched for stop strings.
    """

    def __init__(self, codec: TextCodec, sampling: SamplingParams) -> None:
        self._text_stream: TextStream = ByteTextStream(codec) if codec.is_byte_level else WindowTextStream(codec)
        self._skipped_ids = codec.special_token_ids if sampling.skip_special_tokens else frozenset[int]()
        self._matcher = StopMatcher(sampling.stop, keep_match=sampling.include_stop_str_in_output)
        self._num_unsearched_tokens = sampling.min_tokens
        self.num_chars = 0

    @property
    def stop_string(self) -> str | None:
        return self._matcher.matched

    def push(self, token_id: int) -> str:
        """The text that became certain with this token; often "" at first."""
        text = "" if token_id in self._skipped_ids else self._text_stream.push(token_id)
        self.num_chars += len(text)
        if self._num_unsearched_tokens > 0:
            self._num_unsearched_tokens -= 1
            return text
        return self._matcher.push(text)

    def flush(self) -> str:
        """The rest of the text, when no token follows."""
        text = self._text_stream.flush()
        self.num_chars += len(text)
        return self._matcher.push(text) + self._matcher.flush()
