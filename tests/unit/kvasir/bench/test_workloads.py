from collections import Counter

from kvasir.bench.text_source import PlainWords
from kvasir.bench.workloads import (
    Lengths,
    SharedPrefixes,
    multi_turn,
    prefix_repetition,
    random_prompts,
)
from tests.unit.kvasir.bench.conftest import only_turns, tokens


def test_random_prompts_have_exactly_the_tokens_asked_for(source, demo_tokenizer):
    turns = only_turns(random_prompts(8, Lengths(input_len=37, output_len=5), source, 0))
    assert [len(tokens(demo_tokenizer, turn.text)) for turn in turns] == [37] * 8
    assert {(turn.num_tokens, turn.max_tokens) for turn in turns} == {(37, 5)}
    assert len({turn.text for turn in turns}) == 8


def test_lengths_spread_over_the_whole_range(source, demo_tokenizer):
    lengths = Lengths(input_len=20, output_len=10, range_ratio=0.5)
    turns = only_turns(random_prompts(200, lengths, source, 1))
    assert {turn.num_tokens for turn in turns} == set(range(10, 31))
    assert {turn.max_tokens for turn in turns} == set(range(5, 16))
    assert all(len(tokens(demo_tokenizer, turn.text)) == turn.num_tokens for turn in turns[:20])


def test_a_seed_makes_the_same_requests_again(source):
    lengths = Lengths(input_len=12, output_len=4, range_ratio=0.3)
    one, again, other = (random_prompts(5, lengths, source, seed) for seed in (3, 3, 4))
    assert one == again != other


def test_a_common_prefix_is_common_to_the_tokens_too(source, demo_tokenizer):
    turns = only_turns(random_prompts(4, Lengths(input_len=9, output_len=1), source, 0, prefix_len=24))
    encoded = [tokens(demo_tokenizer, turn.text) for turn in turns]
    assert {len(ids) for ids in encoded} == {33} == {turn.num_tokens for turn in turns}
    assert len({tuple(ids[:24]) for ids in encoded}) == 1
    assert len({tuple(ids[24:]) for ids in encoded}) == 4


def test_prefixes_are_shared_evenly(source, demo_tokenizer):
    shape = SharedPrefixes(num_prefixes=3, prefix_len=16, suffix_len=8, output_len=2)
    turns = only_turns(prefix_repetition(9, shape, source, 0))
    encoded = [tuple(tokens(demo_tokenizer, turn.text)) for turn in turns]
    assert {len(ids) for ids in encoded} == {24}
    assert sorted(Counter(ids[:16] for ids in encoded).values()) == [3, 3, 3]
    assert len(set(encoded)) == 9


def test_conversations_have_turns_of_their_own(source):
    conversations = multi_turn(3, 4, Lengths(input_len=6, output_len=2), source, 0)
    assert [len(conversation.turns) for conversation in conversations] == [4, 4, 4]
    assert len({turn.text for conversation in conversations for turn in conversation.turns}) == 12


def test_without_a_tokenizer_words_stand_for_tokens_and_nobody_claims_to_know():
    (turn,) = only_turns(random_prompts(1, Lengths(input_len=7, output_len=1), PlainWords(), 0))
    assert len(turn.text.split()) == 7
    assert turn.num_tokens is None
