from collections import Counter

import pytest

from kvasir.bench.datasets import TraceLine, mooncake, sharegpt
from kvasir.bench.text_source import PlainWords
from kvasir_protocol.errors import ConfigError
from tests.unit.kvasir.bench.conftest import only_turns, tokens


def spoken(question, answer):
    return {"conversations": [{"from": "human", "value": question}, {"from": "gpt", "value": answer}]}


def test_sharegpt_keeps_questions_of_a_usable_length_and_repeats_them():
    good = [spoken("who was he really", "a being of great wisdom"), spoken("where did it all begin", "up in the north")]
    entries = [*good, spoken("short", "a b c d e"), spoken("what is the matter", "no"), {"conversations": []}]
    turns = only_turns(sharegpt(entries, 4, PlainWords(), 0))
    assert Counter(turn.text for turn in turns) == {"who was he really": 2, "where did it all begin": 2}
    assert {turn.max_tokens for turn in turns} == {5, 4}


def test_sharegpt_answers_may_be_given_a_length():
    (turn,) = only_turns(sharegpt([spoken("what is the matter", "no")], 1, PlainWords(), 0, output_len=9))
    assert turn.max_tokens == 9


def test_sharegpt_without_anything_usable_is_refused():
    with pytest.raises(ConfigError, match="no conversation of a usable length"):
        sharegpt([spoken("hi", "ho")], 1, PlainWords(), 0)
    with pytest.raises(ConfigError, match=r'no \[{"value"'):
        sharegpt([{"conversations": ["a", "b"]}], 1, PlainWords(), 0)


def test_a_trace_shares_what_it_shared_and_keeps_its_times(source, demo_tokenizer):
    lines = [TraceLine(0, 700, 3, (1, 2)), TraceLine(500, 1024, 0, (1, 7)), TraceLine(2000, 100, 5, (9,))]
    first, second, third = mooncake(lines, source, 0, speed=2.0)
    encoded = [tokens(demo_tokenizer, item.turns[0].text) for item in (first, second, third)]
    assert [len(ids) for ids in encoded] == [700, 1024, 100]
    assert encoded[0][:512] == encoded[1][:512]
    assert encoded[0][512:] != encoded[1][512:700]
    assert [item.at_s for item in (first, second, third)] == [0, 0.25, 1.0]
    assert [item.turns[0].max_tokens for item in (first, second, third)] == [3, 1, 5]


def test_a_part_of_a_block_is_its_beginning(source, demo_tokenizer):
    part, whole = mooncake([TraceLine(0, 40, 1, (5,)), TraceLine(0, 512, 1, (5,))], source, 0)
    assert tokens(demo_tokenizer, whole.turns[0].text)[:40] == tokens(demo_tokenizer, part.turns[0].text)


def test_tokens_of_a_trace_without_hash_ids_are_shared_with_nobody(source):
    one, other = mooncake([TraceLine(0, 600, 1, (5,)), TraceLine(0, 600, 1, (5,))], source, 0)
    assert one.turns[0].num_tokens == 600
    assert one.turns[0].text != other.turns[0].text
