import random

import pytest

from kvasir.bench.text_source import CountedWords, PlainWords, words_of_tokenizer
from kvasir_protocol.errors import ConfigError


@pytest.mark.parametrize("num_tokens", [1, 2, 7, 50])
def test_words_of_several_tokens_are_cut_to_the_length(num_tokens):
    # Every character is a token: no word is one, whatever is drawn.
    source = CountedWords(len)
    text = source.write(random.Random(0), num_tokens)
    assert (len(text.text), text.num_tokens) == (num_tokens, num_tokens)


def test_a_tokenizer_that_adds_a_token_in_front_is_allowed_for():
    source = CountedWords(lambda text: 1 + len(text.split()))
    draw = random.Random(0)
    first = source.write(draw, 10)
    assert (len(first.text.split()), first.num_tokens) == (9, 10)
    behind = source.write(draw, 5, first.text)
    assert (len(behind.text.split()), behind.num_tokens) == (5, 5)


def test_a_folder_without_a_tokenizer_is_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"--tokenizer .*tokenizer\.json"):
        words_of_tokenizer(tmp_path)


def test_answers_are_counted_without_what_stands_in_front():
    source = CountedWords(lambda text: 1 + len(text.split()))
    assert (source.count("a b"), source.count_answer("a b")) == (3, 2)
    assert (PlainWords().count("a b"), PlainWords().count_answer("a b")) == (None, None)
