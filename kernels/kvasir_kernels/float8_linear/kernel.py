"""The product of float8 with float8 on a GPU: the weights' rows are the rows of the tensor cores.

A step of decodes has fewer tokens than tensor cores have rows, and a weight has enough: so the product is computed
transposed. Float8 products are added in fewer bits than float32 has: after 128 of them the sum is put away in float32
(DeepSeek-V3, 2024). Where tensor cores take no float8, both sides become float16, which holds each number exactly.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from kvasir_kernels.float8.kernel import as_stored, stored_as, widened
from kvasir_kernels.float8.reference import BLOCK, FLOAT8, Quantized
from kvasir_kernels.float8_linear.reference import has_blocks
from kvasir_kernels.float8_linear.tiles import tile_of
from kvasir_kernels.launch import INTERPRETED

_OUTPUT_TILES_OF_A_GROUP = 8
"""Programs that run side by side share weights and tokens: squares of tiles, not rows of them."""


def float8_linear(x: Quantized, weight: Quantized, bias: Tensor | None, dtype: torch.dtype) -> Tensor:
    """See reference.py."""
    num_tokens, num_inputs = x.values.shape
    num_outputs = len(weight.values)
    out = torch.empty(num_tokens, num_outputs, dtype=dtype, device=x.values.device)
    blocks = has_blocks(x, weight)
    tile = tile_of(x, weight)
    grid = (triton.cdiv(num_outputs, tile.outputs) * triton.cdiv(num_tokens, tile.tokens),)
    _multiply[grid](
        as_stored(x.values), x.scale, as_stored(weight.values), weight.scale, bias, out, num_tokens,
        BLOCKS=blocks, X_ROWS=x.scale.dim() == 2, WEIGHT_ROWS=weight.scale.dim() == 2,
        STORED=stored_as(FLOAT8), WIDE=INTERPRETED, NUM_INPUTS=num_inputs, NUM_OUTPUTS=num_outputs,
        OUTPUTS=tile.outputs, TOKENS=tile.tokens, DEPTH=BLOCK, GROUP=_OUTPUT_TILES_OF_A_GROUP,
        num_warps=tile.num_warps, num_stages=tile.num_stages,
    )  # fmt: skip
    return out


@triton.jit(do_not_specialize=["num_tokens"])
def _multiply(
    x: tl.tensor,
    x_scales: tl.tensor,
    weight: tl.tensor,
    weight_scales: tl.tensor,
    bias: tl.tensor,
    out: tl.tensor,
    num_tokens: tl.int32,
    BLOCKS: tl.constexpr,
    X_ROWS: tl.constexpr,
    WEIGHT_ROWS: tl.constexpr,
    STORED: tl.constexpr,
    WIDE: tl.constexpr,
    NUM_INPUTS: tl.constexpr,
    NUM_OUTPUTS: tl.constexpr,
    OUTPUTS: tl.constexpr,
    TOKENS: tl.constexpr,
    DEPTH: tl.constexpr,
    GROUP: tl.constexpr,
) -> None:
    """Compute OUTPUTS outputs of TOKENS tokens."""
    NUM_BLOCKS: tl.constexpr = (NUM_INPUTS + DEPTH - 1) // DEPTH
    output_tile, token_tile = _place_of(tl.program_id(0), num_tokens, NUM_OUTPUTS, OUTPUTS, TOKENS, GROUP)
    outputs = output_tile * OUTPUTS + tl.arange(0, OUTPUTS)
    tokens = token_tile * TOKENS + tl.arange(0, TOKENS)
    is_output, is_token = outputs < NUM_OUTPUTS, tokens < num_tokens
    inputs = tl.arange(0, DEPTH)
    lefts = weight + outputs.to(tl.int64)[:, None] * NUM_INPUTS + inputs[None, :]
    rights = x + tokens.to(tl.int64)[None, :] * NUM_INPUTS + inputs[:, None]
    square = weight_scales + (output_tile * OUTPUTS // DEPTH) * NUM_BLOCKS
    token_scales = x_scales + tokens.to(tl.int64) * NUM_BLOCKS
    sums = tl.zeros((OUTPUTS, TOKENS), tl.float32)
    for block in tl.range(0, NUM_BLOCKS):
        if NUM_INPUTS % DEPTH == 0:
            left = tl.load(lefts, mask=is_output[:, None], other=0.0)
            right = tl.load(rights, mask=is_token[None, :], other=0.0)
        else:
            is_input = block * DEPTH + inputs < NUM_INPUTS
            left = tl.load(lefts, mask=is_output[:, None] & is_input[None, :], other=0.0)
            right = tl.load(rights, mask=is_token[None, :] & is_input[:, None], other=0.0)
        if STORED != "float8":
            left, right = widened(left, tl.float16, STORED), widened(right, tl.float16, STORED)
        if WIDE:
            left, right = left.to(tl.float32), right.to(tl.float32)
        if BLOCKS:
            scales = tl.load(token_scales + block, mask=is_token, other=0.0) * tl.load(square + block)
            sums += tl.dot(left, right, max_num_imprecise_acc=DEPTH, input_precision="ieee") * scales[None, :]
        else:
            sums = tl.dot(left, right, sums, max_num_imprecise_acc=DEPTH, input_precision="ieee")
        lefts += DEPTH
        rights += DEPTH
    if not BLOCKS:
        weight_rows, x_rows = outputs if WEIGHT_ROWS else outputs * 0, tokens if X_ROWS else tokens * 0
        sums *= tl.load(weight_scales + weight_rows, mask=is_output, other=0.0)[:, None]
        sums *= tl.load(x_scales + x_rows, mask=is_token, other=0.0)[None, :]
    if bias is not None:
        sums += tl.load(bias + outputs, mask=is_output, other=0.0).to(tl.float32)[:, None]
    places = out + tokens.to(tl.int64)[None, :] * NUM_OUTPUTS + outputs[:, None]
    tl.store(places, sums.to(out.dtype.element_ty), mask=is_output[:, None] & is_token[None, :])


@triton.jit
def _place_of(
    program: tl.tensor,
    num_tokens: tl.tensor,
    NUM_OUTPUTS: tl.constexpr,
    OUTPUTS: tl.constexpr,
    TOKENS: tl.constexpr,
    GROUP: tl.constexpr,
) -> tuple[tl.tensor, tl.tensor]:
    """Return the tile of outputs and the tile of tokens of a program; GROUP tiles of outputs take turns."""
    num_output_tiles = (NUM_OUTPUTS + OUTPUTS - 1) // OUTPUTS
    num_token_tiles = (num_tokens + TOKENS - 1) // TOKENS
    group = program // (GROUP * num_token_tiles)
    size = tl.minimum(num_output_tiles - group * GROUP, GROUP)
    rest = program % (GROUP * num_token_tiles)
    return group * GROUP + rest % size, rest // size
