"""The bytes behind each token id, as llguidance wants them."""

import threading
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from llguidance import LLMatcher, LLParserLimits, LLTokenizer
from numpy.typing import NDArray

from kvasir_protocol.errors import CheckpointError

_LIMITS = LLParserLimits(
    max_items_in_row=1_000,
    initial_lexer_fuel=1_000_000,
    step_lexer_fuel=100_000,
    step_max_items=25_000,
    max_lexer_states=20_000,
    max_grammar_size=100_000,
    verbose_errors=False,
)
"""A tenth to a half of llguidance's own: what a mask may cost is paid by everybody in the batch.

1,000 items in a row are 250 optional properties of one object; the worst mask found then takes 30 ms, and honest ones
far below 1 ms.
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenSource:
    """Where a model's tokens are written. vocab_size: how many logits there are, often more than tokens."""

    directory: Path
    vocab_size: int
    eos_token_ids: frozenset[int]


class TokenTable:
    """A model's tokens, read once; llguidance's own tokenizer object, shared by all grammars of the model."""

    def __init__(self, source: TokenSource) -> None:
        """Raises CheckpointError if tokenizer.json is missing or of a kind that llguidance can't read."""
        self.vocab_size = source.vocab_size
        if not source.eos_token_ids:
            raise CheckpointError("the model names no end token, so an answer of a given form could not end")
        path = str(source.directory / "tokenizer.json")
        eos = sorted(source.eos_token_ids)
        try:
            try:
                self._tokens = LLTokenizer(path, n_vocab=source.vocab_size, eos_token=eos)
            except ValueError:
                # Some tokenizers know more tokens than the model can say.
                self._tokens = LLTokenizer(path, eos_token=eos)
        except ValueError as error:
            raise CheckpointError(f"the tokenizer can't be used for structured outputs: {error}") from error
        self.num_words = -(-self._tokens.vocab_size // 32)

    def matcher(self, source: str) -> LLMatcher:
        """Compiles; see is_error of the result."""
        return LLMatcher(self._tokens, source, log_level=0, limits=_LIMITS)

    def fit(self, bits: NDArray[np.uint32]) -> NDArray[np.uint32]:
        """Rows over the tokenizer's tokens (num_words wide) as rows over the model's logits: [R, ceil(V / 32)].

        Logits beyond the tokens get 0, tokens beyond the logits are dropped.
        """
        num_words = -(-self.vocab_size // 32)
        if num_words != self.num_words:
            fitting = np.zeros((len(bits), num_words), dtype=np.uint32)
            num_common = min(num_words, self.num_words)
            fitting[:, :num_common] = bits[:, :num_common]
            bits = fitting
        if self.vocab_size % 32:
            bits[:, -1] &= np.uint32((1 << self.vocab_size % 32) - 1)
        return bits

    def bytes_of(self, token_ids: list[int]) -> bytes:
        return self._tokens.decode_bytes(token_ids)


class LazyTokenTable:
    """The table, read by the first who needs it."""

    def __init__(self, source: TokenSource) -> None:
        self._source = source
        self._lock = threading.Lock()
        self._table: TokenTable | None = None

    def get(self) -> TokenTable:
        with self._lock:
            if self._table is None:
                self._table = TokenTable(self._source)
            return self._table
