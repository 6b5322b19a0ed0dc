"""Names of pages: who shares one and who does not."""

import hashlib

from hypothesis import given, settings
from hypothesis import strategies as st

from kvasir_protocol.page_hash import child_hash, page_hashes, root_hash

token_lists = st.lists(st.integers(0, 2**32 - 1), min_size=1, max_size=20)


def test_name_is_the_sha256_of_the_parent_and_little_endian_ids() -> None:
    root = hashlib.sha256(b"kvasir-page-1" + b"\x02\0\0\0" + b"tenant").digest()
    first = hashlib.sha256(root + b"\x07\0\0\0\x08\0\0\0").digest()
    second = hashlib.sha256(first + b"\x09\0\0\0\xff\xff\xff\xff").digest()
    assert page_hashes([7, 8, 9, 2**32 - 1], 2, "tenant") == [first, second]


@settings(max_examples=50)
@given(tokens=token_lists, page_size=st.integers(1, 5))
def test_chain_of_children_gives_the_names_of_all_pages(tokens: list[int], page_size: int) -> None:
    hashes = page_hashes(tokens, page_size)
    parent = root_hash(page_size)
    for index, page_hash in enumerate(hashes):
        parent = child_hash(parent, tokens[index * page_size : (index + 1) * page_size])
        assert page_hash == parent


@settings(max_examples=50)
@given(tokens=token_lists, page_size=st.integers(1, 5))
def test_only_full_pages_have_names(tokens: list[int], page_size: int) -> None:
    assert len(page_hashes(tokens, page_size)) == len(tokens) // page_size


@settings(max_examples=50)
@given(tokens=token_lists, more=token_lists)
def test_longer_text_keeps_the_names_of_its_beginning(tokens: list[int], more: list[int]) -> None:
    hashes = page_hashes(tokens, 3)
    assert page_hashes(tokens + more, 3)[: len(hashes)] == hashes


@settings(max_examples=50)
@given(tokens=st.lists(st.integers(0, 9), min_size=9, max_size=9), index=st.integers(0, 8))
def test_changed_token_renames_its_page_and_all_after_it(tokens: list[int], index: int) -> None:
    changed = [*tokens[:index], tokens[index] + 1, *tokens[index + 1 :]]
    same = [a == b for a, b in zip(page_hashes(tokens, 3), page_hashes(changed, 3), strict=True)]
    assert same == [page < index // 3 for page in range(3)]


@settings(max_examples=50)
@given(tokens=token_lists, salts=st.lists(st.text(max_size=5), min_size=2, max_size=2, unique=True))
def test_salts_are_namespaces(tokens: list[int], salts: list[str]) -> None:
    assert not set(page_hashes(tokens, 1, salts[0])) & set(page_hashes(tokens, 1, salts[1]))


@settings(max_examples=50)
@given(tokens=token_lists, sizes=st.lists(st.integers(1, 300), min_size=2, max_size=2, unique=True))
def test_page_sizes_are_namespaces(tokens: list[int], sizes: list[int]) -> None:
    assert not set(page_hashes(tokens, sizes[0])) & set(page_hashes(tokens, sizes[1]))
