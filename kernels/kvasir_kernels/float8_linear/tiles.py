"""What a program of the float8 product has at hand at a time: defaults, and what tuning tries."""

from dataclasses import dataclass
from itertools import product

from kvasir_kernels.float8.kernel import stored_as
from kvasir_kernels.float8.reference import FLOAT8, Quantized
from kvasir_kernels.float8_linear.reference import has_blocks
from kvasir_kernels.launch import INTERPRETED, power_of_two
from kvasir_kernels.tuning.choices import chosen
from kvasir_kernels.tuning.table import TileKey

TOKENS = (16, 64, 256, 2048)
"""Numbers of tokens that have choices of their own; others take the next larger one's."""


@dataclass(frozen=True, slots=True)
class Tile:
    """Outputs and tokens of a program, and the options that it is compiled with; it takes BLOCK inputs at a time."""

    outputs: int
    tokens: int
    num_warps: int
    num_stages: int


def key_of(x: Quantized, weight: Quantized) -> TileKey:
    """sizes: tokens, inputs, outputs."""
    num_tokens, num_inputs = x.values.shape
    tokens = next((number for number in TOKENS if number >= num_tokens), TOKENS[-1])
    kind = "float8 in blocks" if has_blocks(x, weight) else "float8"
    return TileKey("float8 product", (tokens, num_inputs, len(weight.values)), kind)


def tile_of(x: Quantized, weight: Quantized) -> Tile:
    default = default_of(len(x.values), blocks=has_blocks(x, weight))
    return chosen(key_of(x, weight), default, x.values.device)


def default_of(num_tokens: int, *, blocks: bool) -> Tile:
    """Many weights in flight where they are what is waited for; else large tiles. Not yet measured.

    With blocks the product of each is held beside the sum: there is room for half of a square tile.
    """
    if INTERPRETED or stored_as(FLOAT8) != "float8":
        return Tile(64, min(64, max(16, power_of_two(num_tokens))), num_warps=4, num_stages=2)
    if num_tokens <= 64:
        return Tile(64, max(16, power_of_two(num_tokens)), num_warps=8 if blocks else 4, num_stages=4)
    return Tile(128, 64 if blocks else 128, num_warps=8, num_stages=3)


def candidates(num_tokens: int, *, blocks: bool) -> tuple[Tile, ...]:
    """37 at most, the default first. A weight's square of 128 outputs is never cut by a tile of them."""
    default = default_of(num_tokens, blocks=blocks)
    most = min(128, max(16, power_of_two(num_tokens)))
    tokens = [size for size in (16, 32, 64, 128) if most // 4 <= size <= most]
    tried = (Tile(*sizes) for sizes in product((64, 128), tokens, (4, 8), (3, 4, 5)))
    return default, *(tile for tile in tried if tile != default)
