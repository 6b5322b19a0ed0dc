"""The demo model's tokens, for rows that have a grammar."""

import pytest

from kvasir.demo import demo_model_path
from kvasir_workers.grammar.token_table import TokenSource, TokenTable

DEMO_MODEL = demo_model_path()


@pytest.fixture(scope="session")
def table() -> TokenTable:
    return TokenTable(TokenSource(directory=DEMO_MODEL, vocab_size=2050, eos_token_ids=frozenset({0, 2})))
