"""Tokens and their progress."""

from dataclasses import replace

from kvasir_protocol.page_hash import page_hashes
from kvasir_workers.sequence import Sequence
from tests.unit.workers.fakes import make_request


def test_replayed_tokens_count_as_generated() -> None:
    sequence = Sequence(make_request("r", [1, 2], emitted=[3]))
    assert (sequence.num_prompt_tokens, sequence.num_generated, sequence.num_pending) == (2, 1, 3)


def test_names_of_pages_are_those_of_the_protocol() -> None:
    sequence = Sequence(make_request("r", range(7), salt="tenant"))
    assert sequence.hashes_up_to(7, 2) == page_hashes(range(7), 2, "tenant")


def test_names_grow_with_the_tokens() -> None:
    sequence = Sequence(make_request("r", range(4)))
    before = sequence.hashes_up_to(4, 2)
    sequence.token_ids += [4, 5]
    assert sequence.hashes_up_to(6, 2) == page_hashes(range(6), 2)
    assert sequence.hashes_up_to(4, 2) == before


def test_a_prompt_that_is_only_embedded_needs_pages_for_all_its_tokens() -> None:
    request = replace(make_request("r", range(9)), pooling="mean")
    assert Sequence(request).num_final_tokens == 9
