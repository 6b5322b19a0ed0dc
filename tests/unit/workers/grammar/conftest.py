"""The demo model's tokens, and one compiler over them."""

from collections.abc import Iterator

import pytest

from kvasir.demo import demo_model_path
from kvasir_workers.grammar.compiler import GrammarCompiler
from kvasir_workers.grammar.token_table import TokenSource, TokenTable

DEMO_MODEL = demo_model_path()


@pytest.fixture(scope="session")
def token_source() -> TokenSource:
    return TokenSource(directory=DEMO_MODEL, vocab_size=2050, eos_token_ids=frozenset({0, 2}))


@pytest.fixture(scope="session")
def table(token_source: TokenSource) -> TokenTable:
    return TokenTable(token_source)


@pytest.fixture(scope="session")
def compiler(token_source: TokenSource) -> Iterator[GrammarCompiler]:
    made = GrammarCompiler(token_source)
    yield made
    made.close()
