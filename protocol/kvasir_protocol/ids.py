"""Names for the things that messages speak of."""

from typing import NewType

RequestId = NewType("RequestId", str)
"""One stream of tokens. A request with `n` choices has one id per choice."""

ReplicaId = NewType("ReplicaId", str)
"""One engine: a gang of tensor x pipeline parallel ranks that serves as one."""

PageHash = NewType("PageHash", bytes)
"""Names the content of one full KV page and of all pages before it (`page_hash.py`)."""

PageIndex = NewType("PageIndex", int)
"""Position of a page in one replica's pool."""

Generation = NewType("Generation", int)
"""Counts a replica's reservations from a random number on, so that a late message can't be taken for a new one's:
neither for a later reservation's, nor for one of a replica that listens where the former did."""
