"""The one function that names KV pages, used by the router's index and by the workers' cache."""

import hashlib
from array import array
from collections.abc import Sequence

from kvasir_protocol.ids import PageHash

_VERSION = b"kvasir-page-1"


def root_hash(page_size: int, salt: str = "") -> PageHash:
    """The parent of every first page. A salt (a tenant's or an adapter's) makes a namespace of its own."""
    return PageHash(hashlib.sha256(_VERSION + page_size.to_bytes(4, "little") + salt.encode()).digest())


def child_hash(parent: PageHash, token_ids: Sequence[int]) -> PageHash:
    """Name the page that holds token_ids after parent: SHA-256 of the parent and the ids as 32-bit words."""
    return PageHash(hashlib.sha256(parent + array("I", token_ids).tobytes()).digest())


def page_hashes(token_ids: Sequence[int], page_size: int, salt: str = "") -> list[PageHash]:
    """Names of all full pages of token_ids, in order; a last page that is not full has none."""
    hashes: list[PageHash] = []
    parent = root_hash(page_size, salt)
    for end in range(page_size, len(token_ids) + 1, page_size):
        parent = child_hash(parent, token_ids[end - page_size : end])
        hashes.append(parent)
    return hashes
