"""Where a sequence stands in its grammar, and which tokens may come next."""

import os
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:  # an engine whose requests have no grammar does without
    from llguidance import LLExecutor, LLMatcher

    from kvasir_workers.grammar.token_table import TokenTable

_START_BUDGET_S = 0.5
_TOKEN_BUDGET_S = 0.01
"""CPU time that a sequence may take from the batch, at first and for each token: a hundred times the honest need."""

_UNTIMED_S = 0.005
"""Half a token's budget. Whoever had a part in masks, or accepted a token, within so much wall time overdraws nothing:
clocks of CPU time are slow, so those who take longer are watched from then on."""

_HONEST_S = 0.0002
"""What one mask of a large vocabulary takes: a large batch is not suspect for being large."""

_NUM_WATCHED = 32
"""Masks that are made alone, at their sequence's cost, before it is no longer watched."""

_ALL_TOKENS = np.uint32(0xFFFF_FFFF)


class GrammarState:
    """One sequence's own; a function of the tokens that it accepted, so that replaying them rebuilds it."""

    def __init__(self, matcher: "LLMatcher", table: "TokenTable") -> None:
        self._matcher = matcher
        self._table = table
        self._has_failed = False
        self._budget_s = _START_BUDGET_S
        self._num_watched = 0

    def accept(self, token_ids: Sequence[int]) -> bool:
        """Go on by these tokens. False, from then on, if the grammar has no such text or became too costly."""
        if not self._has_failed:
            started = time.thread_time()
            is_accepted = self._matcher.consume_tokens(list(token_ids))
            self._budget_s += _TOKEN_BUDGET_S * len(token_ids) - (time.thread_time() - started)
            self._has_failed = not is_accepted or self._budget_s < 0
        return not self._has_failed

    def accept_next(self, token_id: int) -> bool:
        """`accept` of a single token, on the way of every step."""
        if self._num_watched or self._has_failed:
            return self.accept((token_id,))
        started = time.perf_counter()
        is_accepted = self._matcher.consume_token(token_id)
        self._budget_s += _TOKEN_BUDGET_S
        self._has_failed = not is_accepted or self._budget_s < 0
        if time.perf_counter() - started > _UNTIMED_S:
            self._num_watched = _NUM_WATCHED
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
        packed = packed_masks([self], None)[0]
        bits = np.unpackbits(packed.view(np.uint8), count=self._table.vocab_size, bitorder="little")
        return bits.view(np.bool_)


def mask_threads() -> "LLExecutor | None":
    """llguidance's own threads, four for five cores, which sleep between steps. None where that makes but one: handing
    it the work would cost more than it saves."""
    from llguidance import LLExecutor

    num_threads = len(os.sched_getaffinity(0)) * 4 // 5
    return LLExecutor(num_threads) if num_threads > 1 else None


def packed_masks(states: Sequence[GrammarState], threads: "LLExecutor | None") -> NDArray[np.uint32]:
    """What `allowed` says of each, all of one model: [R, ceil(V / 32)], token i in bit i % 32 of word i // 32.

    Bits beyond V mean nothing. The threads work without the GIL; without threads the masks are made one by one.
    """
    table = states[0]._table
    bits = np.zeros((len(states), table.num_words), dtype=np.uint32)
    trusted = [
        (state._matcher, row) for row, state in enumerate(states) if not state._num_watched and not state._has_failed
    ]
    if len(trusted) < len(states):
        _fill_watched(states, bits)
    started = time.perf_counter()
    _fill(trusted, bits, threads)
    if time.perf_counter() - started > _UNTIMED_S + _HONEST_S * len(trusted):
        for _, row in trusted:
            states[row]._num_watched = _NUM_WATCHED
    packed = table.fit(bits)
    has_token: list[int] = packed.max(axis=1).tolist()
    for row, state in enumerate(states):
        if not has_token[row] or state._matcher.is_error():
            state._has_failed = True
            packed[row] = _ALL_TOKENS
    return packed


def _fill(matchers: "list[tuple[LLMatcher, int]]", bits: NDArray[np.uint32], threads: "LLExecutor | None") -> None:
    """matchers: each with its row of bits."""
    if not matchers:
        return
    address, num_bytes = bits.ctypes.data, bits.strides[0]
    if threads is not None:
        threads.unsafe_compute_mask_ptr(matchers, address, num_bytes, len(bits))
        return
    for matcher, row in matchers:
        matcher.unsafe_compute_mask_ptr(address + row * num_bytes, num_bytes)


def _fill_watched(states: Sequence[GrammarState], bits: NDArray[np.uint32]) -> None:
    for row, state in enumerate(states):
        if state._num_watched and not state._has_failed:
            started = time.thread_time()
            _fill([(state._matcher, row)], bits, None)
            state._budget_s -= time.thread_time() - started
            state._num_watched -= 1


class Grammar:
    """A compiled form, shared by all sequences that asked for it."""

    def __init__(self, matcher: "LLMatcher", table: "TokenTable") -> None:
        matcher.compute_bitmask()  # what this finds out about the form's words its copies need not find out again
        self._matcher = matcher
        self._table = table

    def start(self) -> GrammarState:
        return GrammarState(self._matcher.deep_copy(), self._table)
