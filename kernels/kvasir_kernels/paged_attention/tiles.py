"""What a program of the attention kernels has at hand at a time: defaults, and what tuning tries."""

from dataclasses import dataclass, replace
from itertools import product

import torch
from torch import Tensor

from kvasir_kernels.launch import loads_while_it_multiplies, multiplies_in_registers, power_of_two
from kvasir_kernels.paged_cache import LayerCache
from kvasir_kernels.tuning.choices import chosen
from kvasir_kernels.tuning.table import TileKey


@dataclass(frozen=True, slots=True)
class Tile:
    """Rows and keys, and the options that the kernel is compiled with."""

    rows: int
    keys: int
    num_warps: int
    num_stages: int


@dataclass(frozen=True, slots=True)
class DecodeTile(Tile):
    """programs: so many for each multiprocessor, if there are keys enough; their number is how decodes are split.

    They wait for memory: a second one has its loads in flight meanwhile. The default is not yet measured.
    """

    programs: int = 2


def decode_key(query: Tensor, cache: LayerCache) -> TileKey:
    return TileKey("attention of decodes", _sizes(query, cache), _dtypes(query, cache))


def chunk_key(query: Tensor, cache: LayerCache) -> TileKey:
    return TileKey("attention of chunks", _sizes(query, cache), _dtypes(query, cache))


def _sizes(query: Tensor, cache: LayerCache) -> tuple[int, ...]:
    """Query heads, key heads, head size."""
    return query.shape[1], cache.key.shape[2], query.shape[2]


def _dtypes(query: Tensor, cache: LayerCache) -> str:
    return " over ".join(str(dtype).removeprefix("torch.") for dtype in (query.dtype, cache.key.dtype))


def tile_of_decode(query: Tensor, cache: LayerCache) -> DecodeTile:
    return chosen(decode_key(query, cache), default_of_decode(query, cache), query.device)


def tile_of_chunk(query: Tensor, cache: LayerCache) -> Tile:
    return chosen(chunk_key(query, cache), default_of_chunk(query, cache), query.device)


def default_of_decode(query: Tensor, cache: LayerCache) -> DecodeTile:
    """16 rows are the least that tensor cores take; a tile's keys and values are 8 KiB each.

    The address of a key waits for its page's number: of five stages two have keys and values in flight. With three,
    nothing would be loaded while a tile is computed.
    """
    if query.dtype == torch.float32:
        return DecodeTile(16, 16, num_warps=4, num_stages=1)
    rows = min(64, max(16, power_of_two(query.shape[1] // cache.key.shape[2])))
    keys = 64 if query.shape[2] <= 64 and rows <= 32 else 32
    if not loads_while_it_multiplies():
        return DecodeTile(rows, keys, num_warps=4, num_stages=2)
    if cache.key.dtype.itemsize == 1 and query.shape[2] <= 128:
        keys *= 2
    return DecodeTile(rows, keys, num_warps=4, num_stages=5)


def default_of_chunk(query: Tensor, cache: LayerCache) -> Tile:
    """128 rows by 64 keys for heads of up to 128, as others found best on Hopper; not yet measured here.

    Less where tensor cores take their operands from registers, and still less where those are widened there.
    """
    if query.dtype == torch.float32:
        return Tile(16, 16, num_warps=8, num_stages=1)
    is_small = multiplies_in_registers() or not loads_while_it_multiplies()
    shrink = 2 if is_small and cache.key.dtype.itemsize == 1 else 1
    if query.shape[2] > 128:
        return Tile(64 // shrink, 32, num_warps=8 // shrink, num_stages=2)
    keys = 32 if query.shape[2] > 64 and is_small else 64
    return Tile(128 // shrink, keys, num_warps=8 // shrink, num_stages=2)


def decode_candidates(query: Tensor, cache: LayerCache) -> tuple[DecodeTile, ...]:
    """55 at most, the default first: what peers have found best on some device is among them."""
    default = default_of_decode(query, cache)
    tried = (
        replace(default, keys=keys, num_warps=num_warps, num_stages=num_stages, programs=programs)
        for keys, num_warps, num_stages, programs in product((32, 64, 128), (4, 8), (2, 3, 5), (1, 2, 4))
    )
    return default, *(tile for tile in tried if tile != default)


def chunk_candidates(query: Tensor, cache: LayerCache) -> tuple[Tile, ...]:
    """25 at most, the default first."""
    default = default_of_chunk(query, cache)
    tried = (Tile(*sizes) for sizes in product((64, 128), (32, 64, 128), (4, 8), (2, 3)))
    return default, *(tile for tile in tried if tile != default)
