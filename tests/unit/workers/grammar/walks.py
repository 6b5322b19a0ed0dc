"""Random answers of a form, without a model."""

import random
from collections.abc import Iterator

import numpy as np

from kvasir_protocol.structured import StructureKind
from kvasir_workers.grammar.source import grammar_source
from kvasir_workers.grammar.state import Grammar
from kvasir_workers.grammar.token_table import TokenTable

EOS = (0, 2)
_CLOSING = {b'"', b"}", b"]", b'":', b",", b'"}'}


def compile_here(table: TokenTable, kind: StructureKind, text: str) -> Grammar:
    matcher = table.matcher(grammar_source(kind, text))
    assert not matcher.is_error(), matcher.get_error()
    return Grammar(matcher, table)


def random_texts(table: TokenTable, grammar: Grammar, num_walks: int, max_tokens: int = 150) -> Iterator[bytes]:
    """Those of num_walks random answers that come to an end. The longer one gets, the more it is for closing."""
    token_bytes = [table.bytes_of([token_id]) for token_id in range(2048)]
    closing = np.zeros(table.vocab_size, dtype=np.bool_)
    closing[[i for i, content in enumerate(token_bytes) if content in _CLOSING]] = True
    for seed in range(num_walks):
        dice, state, text = random.Random(seed), grammar.start(), b""
        for position in range(max_tokens):
            allowed = state.allowed()
            if position > 8 and dice.random() < 0.3 and (allowed & closing).any():
                allowed &= closing
            token_id = dice.choice(np.flatnonzero(allowed).tolist())
            assert state.accept([token_id]), state.failure
            text += b"" if token_id in EOS else token_bytes[token_id]
            if state.has_ended:
                yield text
                break
