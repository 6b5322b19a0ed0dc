"""What a replica's prefix cache holds, told in vLLM's published layout, so that any router can read it.

PUB      [topic, sequence number (8 bytes, big-endian), batch]      batch: msgpack of [time, [events], rank]
ROUTER   asked  [b"", first sequence number wanted]  or  [b"", b"dump"]
         answers [b"", sequence number, batch] ..., [b"", -1, b""]

Sequence numbers count batches from 0 without gaps: whoever sees one has lost something. A dump is the cache as it was
after the batch of that number: AllBlocksCleared, then every page. vLLM answers replays, but has no dump.

Events are written as maps with "type" (vLLM since June 2026); the older positional arrays are read too.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal, cast

import msgpack

from kvasir_protocol.errors import WireError

BlockHash = bytes | int
"""Ours have 32 bytes; others also use 64-bit integers."""

ExtraKeys = tuple[tuple[object, ...] | None, ...]
"""For each page what its hash holds besides tokens, such as the cache salt of a first page."""

DUMP_REQUEST = b"dump"
END_SEQUENCE = (-1).to_bytes(8, "big", signed=True)

Medium = Literal["GPU", "CPU", "STORAGE"]
"""Where a page lies, in vLLM's words; a reader may meet others."""

MEDIUM_GPU: Final = "GPU"
"""The memory that the model computes from, whatever the device."""

MEDIUM_CPU: Final = "CPU"
"""Host memory below it."""

MEDIUM_STORAGE: Final = "STORAGE"
"""A disk."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BlockStored:
    """Pages that follow each other, and their tokens; parent_block_hash None: they are the first of a sequence."""

    block_hashes: tuple[BlockHash, ...]
    parent_block_hash: BlockHash | None
    token_ids: tuple[int, ...]
    block_size: int
    medium: str | None = MEDIUM_GPU
    lora_name: str | None = None
    extra_keys: ExtraKeys | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class BlockRemoved:
    block_hashes: tuple[BlockHash, ...]
    medium: str | None = MEDIUM_GPU


@dataclass(frozen=True, slots=True, kw_only=True)
class AllBlocksCleared:
    """Nothing is cached any more."""


KvEvent = BlockStored | BlockRemoved | AllBlocksCleared


@dataclass(frozen=True, slots=True, kw_only=True)
class KvEventBatch:
    """timestamp: seconds since 1970."""

    timestamp: float
    events: tuple[KvEvent, ...]
    data_parallel_rank: int | None = None


def encode_batch(batch: KvEventBatch) -> bytes:
    events = [_to_map(event) for event in batch.events]
    return cast(bytes, msgpack.packb([batch.timestamp, events, batch.data_parallel_rank]))


def decode_batch(frame: bytes) -> KvEventBatch:
    """Unknown kinds of events and unknown fields are passed over. Raises WireError if the rest is not as expected."""
    try:
        body = msgpack.unpackb(frame, use_list=False, strict_map_key=False)
    except (ValueError, msgpack.exceptions.UnpackException) as error:
        raise WireError(f"not msgpack: {error or type(error).__name__}") from error
    if not isinstance(body, tuple) or len(body) < 2 or not isinstance(body[1], tuple):
        raise WireError("a batch of KV events is [time, [events], rank]")
    rank = body[2] if len(body) > 2 else None
    if not isinstance(body[0], int | float) or not isinstance(rank, int | None):
        raise WireError("a batch of KV events begins with a time and ends with a rank")
    events = (_from_plain(item) for item in body[1])
    known = tuple(event for event in events if event is not None)
    return KvEventBatch(timestamp=float(body[0]), events=known, data_parallel_rank=rank)


def sequence_bytes(sequence_number: int) -> bytes:
    return sequence_number.to_bytes(8, "big")


def parse_sequence(frame: bytes) -> int:
    """Raises WireError if it is none."""
    if len(frame) != 8:
        raise WireError(f"a sequence number has 8 bytes, got {len(frame)}")
    return int.from_bytes(frame, "big", signed=True)


def parse_publication(frames: Sequence[bytes]) -> tuple[int, KvEventBatch]:
    """Sequence number and batch of a PUB socket's message. Raises WireError."""
    if len(frames) != 3:
        raise WireError(f"a publication has topic, sequence number and batch, got {len(frames)} frames")
    return parse_sequence(frames[1]), decode_batch(frames[2])


def parse_answer(frames: Sequence[bytes]) -> tuple[int, KvEventBatch] | None:
    """Sequence number and batch of an answer to a request for a replay or a dump; None at its end. Raises WireError."""
    if len(frames) != 3 or frames[0]:
        raise WireError(f"an answer is an empty frame, a sequence number and a batch, got {len(frames)} frames")
    return None if frames[1] == END_SEQUENCE else (parse_sequence(frames[1]), decode_batch(frames[2]))


_FIELDS = {
    "BlockStored": (
        "block_hashes",
        "parent_block_hash",
        "token_ids",
        "block_size",
        "lora_id",
        "medium",
        "lora_name",
        "extra_keys",
    ),
    "BlockRemoved": ("block_hashes", "medium"),
    "AllBlocksCleared": (),
}
"""In the order of the positional layout; fields that were added at its end later are passed over."""


def _to_map(event: KvEvent) -> dict[str, object]:
    match event:
        case BlockStored():
            fields: dict[str, object] = {
                "type": "BlockStored",
                "block_hashes": event.block_hashes,
                "parent_block_hash": event.parent_block_hash,
                "token_ids": event.token_ids,
                "block_size": event.block_size,
                "lora_id": None,
                "medium": event.medium,
                "lora_name": event.lora_name,
            }
            return fields if event.extra_keys is None else {**fields, "extra_keys": event.extra_keys}
        case BlockRemoved():
            return {"type": "BlockRemoved", "block_hashes": event.block_hashes, "medium": event.medium}
        case AllBlocksCleared():
            return {"type": "AllBlocksCleared"}


def _from_plain(item: object) -> KvEvent | None:
    """An event as a map or as an array; None if it is of a kind that we don't know."""
    if isinstance(item, Mapping):
        kind, fields = item.get("type"), dict(item)
    elif isinstance(item, tuple) and item:
        kind = item[0]
        fields = dict(zip(_FIELDS.get(kind, ()) if isinstance(kind, str) else (), item[1:], strict=False))
    else:
        raise WireError("a KV event is a map or an array")
    match kind:
        case "BlockStored":
            return _read_stored(fields)
        case "BlockRemoved":
            return BlockRemoved(block_hashes=_read_hashes(fields), medium=_read_text(fields, "medium"))
        case "AllBlocksCleared":
            return AllBlocksCleared()
        case str():
            return None
        case _:
            raise WireError("a KV event has no type")


def _read_stored(fields: Mapping[str, Any]) -> BlockStored:
    hashes, token_ids, block_size = _read_hashes(fields), fields.get("token_ids"), fields.get("block_size")
    parent, extra_keys = fields.get("parent_block_hash"), fields.get("extra_keys")
    if not isinstance(token_ids, tuple) or not all(type(token_id) is int for token_id in token_ids):
        raise WireError("BlockStored.token_ids: expected whole numbers")
    if type(block_size) is not int or block_size * len(hashes) != len(token_ids):
        raise WireError(f"BlockStored: {len(token_ids)} tokens in {len(hashes)} pages of block_size tokens")
    if not isinstance(parent, bytes | int | None):
        raise WireError("BlockStored.parent_block_hash: expected a hash")
    if extra_keys is not None and (
        not isinstance(extra_keys, tuple) or not all(isinstance(keys, tuple | None) for keys in extra_keys)
    ):
        raise WireError("BlockStored.extra_keys: expected a list for each page")
    return BlockStored(
        block_hashes=hashes,
        parent_block_hash=parent,
        token_ids=token_ids,
        block_size=block_size,
        medium=_read_text(fields, "medium"),
        lora_name=_read_text(fields, "lora_name"),
        extra_keys=extra_keys,
    )


def _read_hashes(fields: Mapping[str, Any]) -> tuple[BlockHash, ...]:
    hashes = fields.get("block_hashes")
    if not isinstance(hashes, tuple) or not all(type(item) in (bytes, int) for item in hashes):
        raise WireError("block_hashes: expected a list of hashes")
    return hashes


def _read_text(fields: Mapping[str, Any], name: str) -> str | None:
    value = fields.get(name)
    if not isinstance(value, str | None):
        raise WireError(f"{name}: expected a text")
    return value
