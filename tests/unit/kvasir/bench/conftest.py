"""The demo model's tokenizer, to count what was made."""

import pytest
from tokenizers import Tokenizer

from kvasir.bench.text_source import words_of_tokenizer
from kvasir.demo import demo_model_path


@pytest.fixture(scope="session")
def demo_tokenizer():
    return Tokenizer.from_file(str(demo_model_path() / "tokenizer.json"))


@pytest.fixture(scope="session")
def source():
    return words_of_tokenizer(demo_model_path())


def tokens(tokenizer, text):
    return tokenizer.encode(text).ids


def only_turns(conversations):
    assert all(len(conversation.turns) == 1 for conversation in conversations)
    return [conversation.turns[0] for conversation in conversations]
