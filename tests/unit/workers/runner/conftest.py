"""The demo model's tokens, for rows that have a grammar."""

from pathlib import Path

import pytest

from kvasir_workers.grammar.token_table import TokenSource, TokenTable

DEMO_MODEL = Path(__file__).parents[4] / "kvasir" / "demo_model"


@pytest.fixture(scope="session")
def table() -> TokenTable:
    return TokenTable(TokenSource(directory=DEMO_MODEL, vocab_size=2050, eos_token_ids=frozenset({0, 2})))
