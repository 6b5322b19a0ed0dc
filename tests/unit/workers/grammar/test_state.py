"""A state is its own, a function of its tokens, and lets an end through only where the form may end."""

import dataclasses

import numpy as np
import pytest
from llguidance import LLExecutor

from kvasir_workers.grammar.state import packed_masks
from kvasir_workers.grammar.token_table import TokenSource, TokenTable
from tests.unit.workers.grammar.walks import EOS, compile_here


def ids_of(table: TokenTable, allowed: np.ndarray[tuple[int], np.dtype[np.bool_]]) -> set[bytes]:
    return {table.bytes_of([int(i)]) for i in np.flatnonzero(allowed) if i not in EOS}


def token(table: TokenTable, content: bytes) -> int:
    return next(i for i in range(2048) if table.bytes_of([i]) == content)


def test_end_is_allowed_only_where_the_form_may_end(table: TokenTable) -> None:
    state = compile_here(table, "regex", "a|ab").start()
    assert ids_of(table, state.allowed()) == {b"a", b"ab"}
    assert not state.allowed()[list(EOS)].any()
    assert state.accept([token(table, b"a")])
    assert state.allowed()[list(EOS)].all()
    assert not state.has_ended
    assert state.accept([token(table, b"b")])
    assert state.has_ended
    assert ids_of(table, state.allowed()) == set()


def test_ids_beyond_the_tokenizer_are_never_allowed(table: TokenTable) -> None:
    assert not compile_here(table, "regex", "[^x]*").start().allowed()[2048:].any()


def test_special_tokens_are_no_text(table: TokenTable) -> None:
    assert not compile_here(table, "regex", "[^x]*").start().allowed()[1]


def test_states_of_one_grammar_do_not_know_each_other(table: TokenTable) -> None:
    grammar = compile_here(table, "choice", '["aa", "bb"]')
    one, other = grammar.start(), grammar.start()
    one.accept([token(table, b"a")])
    assert ids_of(table, one.allowed()) == {b"a"}
    other.accept([token(table, b"b")])
    assert ids_of(table, other.allowed()) == {b"b"}


def test_replayed_state_is_the_state(table: TokenTable) -> None:
    grammar = compile_here(table, "json_schema", '{"type": "array", "items": {"type": "boolean"}, "minItems": 30}')
    stepwise, tokens = grammar.start(), []
    for _ in range(20):
        tokens.append(int(np.flatnonzero(stepwise.allowed())[-1]))
        stepwise.accept(tokens[-1:])
    replayed = grammar.start()
    assert replayed.accept(tokens)
    assert (replayed.allowed() == stepwise.allowed()).all()


def test_token_that_is_not_allowed_fails_the_state_for_good(table: TokenTable) -> None:
    state = compile_here(table, "regex", "ab").start()
    assert not state.accept([token(table, b"x")])
    assert not state.accept([token(table, b"a")])
    assert state.allowed().all()


def test_sequence_that_takes_too_much_time_fails(table: TokenTable, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kvasir_workers.grammar.state._START_BUDGET_S", -1.0)
    state = compile_here(table, "regex", "a+").start()
    assert not state.accept([token(table, b"a")])
    assert state.failure == "its tokens take too much time"


def test_masks_made_together_are_those_made_one_by_one(table: TokenTable) -> None:
    """A failed one among them."""
    grammars = [compile_here(table, "regex", pattern) for pattern in ("[ab]+", "x?", "[^y]*", r"\d{3}")]
    together, alone = [grammar.start() for grammar in grammars], [grammar.start() for grammar in grammars]
    for states in (together, alone):
        states[2].accept([token(table, b"y")])
    threads = LLExecutor(3)
    assert (packed_masks(together, threads) == packed_masks(alone, None)).all()
    assert (packed_masks(together[:1], threads) == packed_masks(alone[:1], None)).all()
    assert (packed_masks(together[2:3], threads) == np.uint32(2**32 - 1)).all()


@pytest.fixture(params=[None, 2], ids=["one by one", "together"])
def threads(request: pytest.FixtureRequest) -> LLExecutor | None:
    return LLExecutor(request.param) if request.param else None


def test_sequences_whose_masks_take_too_long_are_charged_from_then_on(
    table: TokenTable, monkeypatch: pytest.MonkeyPatch, threads: LLExecutor | None
) -> None:
    monkeypatch.setattr("kvasir_workers.grammar.state._UNTIMED_S", 60.0)
    states = [compile_here(table, "regex", pattern).start() for pattern in ("a+", "b+")]
    packed_masks(states, threads)
    before = [state._budget_s for state in states]
    monkeypatch.setattr("kvasir_workers.grammar.state._UNTIMED_S", -1.0)
    packed_masks(states, threads)
    assert [state._budget_s for state in states] == before
    packed_masks(states, threads)
    assert all(state._budget_s < then for state, then in zip(states, before, strict=True))


def test_sequence_is_no_longer_watched_after_masks_enough(
    table: TokenTable, monkeypatch: pytest.MonkeyPatch, threads: LLExecutor | None
) -> None:
    state = compile_here(table, "regex", "a+").start()
    monkeypatch.setattr("kvasir_workers.grammar.state._UNTIMED_S", -1.0)
    packed_masks([state], threads)
    monkeypatch.setattr("kvasir_workers.grammar.state._UNTIMED_S", 60.0)
    for _ in range(32):
        packed_masks([state], threads)
    before = state._budget_s
    packed_masks([state], threads)
    assert state._budget_s == before


def test_token_that_takes_too_long_to_accept_has_its_sequence_charged_for_the_next(
    table: TokenTable, monkeypatch: pytest.MonkeyPatch
) -> None:
    state, a = compile_here(table, "regex", "a+").start(), token(table, b"a")
    monkeypatch.setattr("kvasir_workers.grammar.state._UNTIMED_S", -1.0)
    monkeypatch.setattr("kvasir_workers.grammar.state._TOKEN_BUDGET_S", 0.0)
    before = state._budget_s
    assert state.accept_next(a)
    assert state._budget_s == before
    assert state.accept_next(a)
    assert state._budget_s < before


def test_sequence_that_overdraws_while_it_is_watched_fails_and_no_other(
    table: TokenTable, monkeypatch: pytest.MonkeyPatch, threads: LLExecutor | None
) -> None:
    costly, cheap = (compile_here(table, "regex", "a+").start() for _ in range(2))
    costly._num_watched, costly._budget_s = 9, 0.0
    monkeypatch.setattr("kvasir_workers.grammar.state._TOKEN_BUDGET_S", 0.0)
    packed_masks([costly, cheap], threads)
    a = [token(table, b"a")]
    assert (costly.accept(a), cheap.accept(a)) == (False, True)
    assert costly.failure == "its tokens take too much time"
    assert (packed_masks([costly, cheap], threads)[0] == np.uint32(2**32 - 1)).all()


@pytest.mark.parametrize("vocab_size", [1000, 1024, 2047, 2048, 2049, 5000])
def test_tokens_and_logits_may_differ_in_number(token_source: TokenSource, table: TokenTable, vocab_size: int) -> None:
    other = TokenTable(dataclasses.replace(token_source, vocab_size=vocab_size))
    whole = compile_here(table, "regex", "[^x]*").start().allowed()[:2048]
    allowed = compile_here(other, "regex", "[^x]*").start().allowed()
    num_common = min(2048, vocab_size)
    assert (allowed[:num_common] == whole[:num_common]).all()
    assert len(allowed) == vocab_size
    assert not allowed[num_common:].any()
