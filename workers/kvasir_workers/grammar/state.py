"""Where a sequence stands in its grammar, and which tokens may come next."""

import time
from collections.abc import Sequence

import numpy as np
from llguidance import LLMatcher
from numpy.typing import NDArray

from kvasir_workers.grammar.token_table import TokenTable

_START_BUDGET_S = 0.5
_TOKEN_BUDGET_S = 0.01
"""CPU time that a sequence may take from the batch, at first and for each token: a hundred times the honest need."""


class GrammarState:
    """One sequence's own; a function of the tokens that it accepted, so that replaying them rebuilds it."""

    def __init__(self, matcher: LLMatcher, table: TokenTable) -> None:
        self._matcher = matcher
        self._table = table
        self._has_failed = False
        self._budget_s = _START_BUDGET_S

    def accept(self, token_ids: Sequence[int]) -> bool:
        """Go on by these tokens. False, from then on, if the grammar has no such text or became too costly."""
        if not self._has_failed:
            started = time.thread_time()
            is_accepted = self._matcher.consume_tokens(list(token_ids))
            self._budget_s += _TOKEN_BUDGET_S * len(token_ids) - (time.thread_time() - started)
            self._has_failed = not is_accepted or self._budget_s < 0
        return not self._has_failed

    @property
    def has_ended(self) -> bool:
        """Nothing may follow any more but an end token."""
        return self._matcher.is_stopped()

    @property
    def failure(self) -> str:
        if self._budget_s < 0:
            return "its tokens take too much time"
        return self._matcher.get_error().splitlines()[0] if self._matcher.is_error() else "a token was not allowed"

    def allowed(self) -> NDArray[np.bool_]:
        """[V]: the tokens that may come next, an end token where the answer may end. After a failure: all of them,
        the next one is not accepted anyway."""
        if self._has_failed:
            return np.ones(self._table.vocab_size, dtype=np.bool_)
        bits = np.zeros(self._table.row_bytes, dtype=np.uint8)
        started = time.thread_time()
        self._matcher.unsafe_compute_mask_ptr(bits.ctypes.data, bits.nbytes)
        self._budget_s -= time.thread_time() - started
        num_tokens = min(self._table.vocab_size, bits.nbytes * 8)
        allowed = np.zeros(self._table.vocab_size, dtype=np.bool_)
        allowed[:num_tokens] = np.unpackbits(bits, count=num_tokens, bitorder="little")
        if self._matcher.is_error() or not allowed.any():
            self._has_failed = True
            allowed[:] = True
        return allowed


class Grammar:
    """A compiled form, shared by all sequences that asked for it."""

    def __init__(self, matcher: LLMatcher, table: TokenTable) -> None:
        self._matcher = matcher
        self._table = table

    def start(self) -> GrammarState:
        return GrammarState(self._matcher.deep_copy(), self._table)
