"""Chooses how an operation is computed; everybody else imports operations from here.

On a CPU that is the C++ kernel, built for this machine, or the torch reference where there is none or it doesn't take
what it is given. On a GPU it is the Triton kernel, or a library where that is known to be faster; Triton is imported
with the first tensor that lies there. A user's kernel, if there is one for an operation, is asked first.
sampling_dispatch.py does the same for what happens beside the model; nobody else chooses.
"""

from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor

from kvasir_kernels import sampling_dispatch
from kvasir_kernels.copy_pages import native as native_copies
from kvasir_kernels.copy_pages import reference as plain_copies
from kvasir_kernels.copy_pages.native import PageContents
from kvasir_kernels.decoder_pass import native as native_pass
from kvasir_kernels.decoder_pass.native import NativePass
from kvasir_kernels.decoder_pass.reference import PlainDecoder
from kvasir_kernels.float8 import reference as plain_float8
from kvasir_kernels.float8.reference import Grain, Quantized
from kvasir_kernels.float8_linear import library as float8_library
from kvasir_kernels.float8_linear import reference as plain_float8_linear
from kvasir_kernels.linear import native as native_linear
from kvasir_kernels.linear import onednn
from kvasir_kernels.linear import reference as plain_linear
from kvasir_kernels.move_pages import reference as plain_moves
from kvasir_kernels.move_pages.reference import PagePart
from kvasir_kernels.native.build import cpu_has
from kvasir_kernels.native.choice import native_library, native_mover
from kvasir_kernels.native.library import load_library
from kvasir_kernels.one_shot_all_reduce.reference import PeerMemory
from kvasir_kernels.paged_attention import native as native_attention
from kvasir_kernels.paged_attention import reference as plain_attention
from kvasir_kernels.paged_cache import LayerCache, PaddedDecodes, ScoreChanges, StepAttention
from kvasir_kernels.quantized_linear import native as native_quantized
from kvasir_kernels.quantized_linear import reference as plain_quantized
from kvasir_kernels.quantized_linear.reference import QuantizedMatrix
from kvasir_kernels.rms_norm import native as native_norm
from kvasir_kernels.rms_norm import reference as plain_norm
from kvasir_kernels.rotate_and_write import native as native_rotation
from kvasir_kernels.rotate_and_write import reference as plain_rotation
from kvasir_kernels.rotate_and_write.reference import HeadNorms
from kvasir_kernels.silu_mul import native as native_gate
from kvasir_kernels.silu_mul import reference as plain_gate
from kvasir_kernels.user_kernels import is_any_replaced, replaceable, warn_of_unknown
from kvasir_kernels.write_kv import reference as plain_write

__all__ = [
    "Grain",
    "HeadNorms",
    "NativePass",
    "PackedWeight",
    "PagePart",
    "Quantized",
    "QuantizedMatrix",
    "ScoreChanges",
    "add_rms_norm",
    "add_rms_norm_float8",
    "copy_pages",
    "embedding",
    "float8_linear",
    "fuse_decoder",
    "gather_pages",
    "gelu_mul",
    "gelu_mul_float8",
    "linear",
    "one_shot_all_reduce",
    "pack_quantized",
    "pack_weight",
    "paged_attention",
    "prepare",
    "quantize_float8",
    "rms_norm",
    "rotate_and_write",
    "scatter_pages",
    "silu_mul",
    "silu_mul_float8",
    "write_kv",
]

QuantizedWeight = QuantizedMatrix | native_quantized.NativeQuantizedWeight

PackedWeight = native_linear.NativeWeight | onednn.OneDnnWeight | QuantizedWeight

_MATRIX_UNITS = "amx_bf16"
"""oneDNN uses them, our kernel doesn't."""


def prepare(device: torch.device) -> None:
    """Build and load now what the first operation on the device would have to wait for."""
    if device.type == "cpu":
        load_library()


@replaceable
def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    if x.is_cuda:
        from kvasir_kernels.rms_norm import kernel

        return kernel.rms_norm(x, weight, eps)
    library = native_library(x)
    if library is None or not x.is_contiguous():
        return plain_norm.rms_norm(x, weight, eps)
    return native_norm.rms_norm(library, x, weight, eps)


@replaceable
def add_rms_norm(x: Tensor, residual: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    if x.is_cuda:
        from kvasir_kernels.rms_norm import kernel

        return kernel.add_rms_norm(x, residual, weight, eps)
    library = native_library(x)
    if library is None:
        return plain_norm.add_rms_norm(x, residual, weight, eps)
    return native_norm.add_rms_norm(library, x, residual, weight, eps)


@replaceable
def add_rms_norm_float8(
    x: Tensor, residual: Tensor, weight: Tensor, eps: float, to: Grain | Tensor
) -> tuple[Quantized, Tensor]:
    if x.is_cuda:
        from kvasir_kernels.rms_norm import kernel

        return kernel.add_rms_norm_float8(x, residual, weight, eps, to)
    return plain_norm.add_rms_norm_float8(x, residual, weight, eps, to)


@replaceable
def quantize_float8(x: Tensor, to: Grain | Tensor) -> Quantized:
    if x.is_cuda:
        from kvasir_kernels.float8 import kernel

        return kernel.quantize(x, to)
    return plain_float8.quantize(x, to)


@replaceable
def float8_linear(x: Quantized, weight: Quantized, bias: Tensor | None, dtype: torch.dtype) -> Tensor:
    if x.values.is_cuda:
        if float8_library.can_multiply(x, weight, dtype):
            return float8_library.float8_linear(x, weight, bias, dtype)
        from kvasir_kernels.float8_linear import kernel

        return kernel.float8_linear(x, weight, bias, dtype)
    return plain_float8_linear.float8_linear(x, weight, bias, dtype)


@replaceable
def silu_mul(gate_up: Tensor) -> Tensor:
    if gate_up.is_cuda:
        from kvasir_kernels.silu_mul import kernel

        return kernel.silu_mul(gate_up)
    library = native_library(gate_up)
    return plain_gate.silu_mul(gate_up) if library is None else native_gate.silu_mul(library, gate_up)


@replaceable
def gelu_mul(gate_up: Tensor) -> Tensor:
    if gate_up.is_cuda:
        from kvasir_kernels.silu_mul import kernel

        return kernel.gelu_mul(gate_up)
    return plain_gate.gelu_mul(gate_up)


@replaceable
def silu_mul_float8(gate_up: Tensor, to: Grain | Tensor) -> Quantized:
    if gate_up.is_cuda:
        from kvasir_kernels.silu_mul import kernel

        return kernel.silu_mul_float8(gate_up, to)
    return plain_gate.silu_mul_float8(gate_up, to)


@replaceable
def gelu_mul_float8(gate_up: Tensor, to: Grain | Tensor) -> Quantized:
    if gate_up.is_cuda:
        from kvasir_kernels.silu_mul import kernel

        return kernel.gelu_mul_float8(gate_up, to)
    return plain_gate.gelu_mul_float8(gate_up, to)


@replaceable
def write_kv(key: Tensor, value: Tensor, slots: Tensor, cache: LayerCache) -> None:
    if key.is_cuda:
        from kvasir_kernels.write_kv import kernel

        kernel.write_kv(key, value, slots, cache)
    else:
        plain_write.write_kv(key, value, slots, cache)


@replaceable
def gather_pages(pages: Tensor, page_ids: Tensor, part: PagePart) -> Tensor:
    if pages.is_cuda:
        from kvasir_kernels.move_pages import kernel

        return kernel.gather_pages(pages, page_ids, part)
    return plain_moves.gather_pages(pages, page_ids, part)


@replaceable
def scatter_pages(content: Tensor, pages: Tensor, page_ids: Tensor, part: PagePart) -> None:
    if pages.is_cuda:
        from kvasir_kernels.move_pages import kernel

        kernel.scatter_pages(content, pages, page_ids, part)
    else:
        plain_moves.scatter_pages(content, pages, page_ids, part)


@replaceable
def copy_pages(source: Tensor, source_ids: Sequence[int], target: Tensor, target_ids: Sequence[int]) -> None:
    library = native_mover(source)
    if library is None or not native_copies.can_copy(source, target):
        plain_copies.copy_pages(source, source_ids, target, target_ids)
    else:
        native_copies.copy_pages(library, source, source_ids, target, target_ids)


def page_contents(pages: Tensor, page_ids: Sequence[int]) -> PageContents | None:
    """What goes through the contents of pages that lie together on the host; None where there is nothing native."""
    library = native_mover(pages)
    return None if library is None else PageContents(library, pages, page_ids)


@replaceable
def rotate_and_write(
    heads: Tensor,
    norms: HeadNorms | None,
    cos: Tensor,
    sin: Tensor,
    slots: Tensor,
    cache: LayerCache,
    *,
    interleaved: bool = False,
) -> Tensor:
    if heads.is_cuda:
        from kvasir_kernels.rotate_and_write import kernel

        return kernel.rotate_and_write(heads, norms, cos, sin, slots, cache, interleaved=interleaved)
    library = native_library(heads)
    if library is None or interleaved or not native_rotation.can_rotate(heads, cos, cache):
        return plain_rotation.rotate_and_write(heads, norms, cos, sin, slots, cache, interleaved=interleaved)
    return native_rotation.rotate_and_write(library, heads, norms, cos, sin, slots, cache)


@replaceable
def paged_attention(
    query: Tensor,
    cache: LayerCache,
    batch: StepAttention,
    scale: float,
    window: int | None,
    changes: ScoreChanges | None = None,
) -> Tensor:
    if query.is_cuda:
        from kvasir_kernels.paged_attention import kernel

        if kernel.can_attend(query):
            return kernel.paged_attention(query, cache, batch, scale, window, changes)
    library = native_library(query)
    is_plain = changes is None and native_attention.can_attend(query, cache)
    if library is None or not is_plain or isinstance(batch, PaddedDecodes):
        return plain_attention.paged_attention(query, cache, batch, scale, window, changes)
    return native_attention.paged_attention(library, query, cache, batch, scale, window)


def one_shot_all_reduce(values: Tensor, memory: PeerMemory) -> None:
    """On GPUs alone: CPUs have no memory of this kind."""
    from kvasir_kernels.one_shot_all_reduce import kernel

    kernel.one_shot_all_reduce(values, memory)


def pack_weight(weight: Tensor, *, has_rows: bool = False) -> PackedWeight | None:
    """The matrix [O, E] in the order in which it is read fastest; None where it is best left as it is.

    has_rows: `embedding` will be asked for its rows. The caller lets go of `weight`: nothing refers to it.
    """
    library = native_library(weight)
    if library is not None and native_linear.can_pack(weight) and not cpu_has(_MATRIX_UNITS):
        return native_linear.pack(library, weight)
    if weight.device.type == "cpu" and onednn.can_pack(weight) and not has_rows:
        return onednn.pack(weight)
    return None


def pack_quantized(matrix: QuantizedMatrix, dtype: torch.dtype) -> QuantizedWeight:
    """The matrix in the order in which it is read fastest, for activations of `dtype`; as it is where there is none."""
    library = native_library(matrix.codes, dtype)
    if library is None or not native_quantized.can_pack(matrix):
        return matrix
    return native_quantized.pack(library, matrix, dtype)


@replaceable
def linear(x: Tensor, weight: Tensor | PackedWeight, bias: Tensor | None, dtype: torch.dtype) -> Tensor:
    match weight:
        case native_linear.NativeWeight():
            return native_linear.linear(x, weight, bias, dtype)
        case onednn.OneDnnWeight():
            return onednn.linear(x, weight, bias, dtype)
        case native_quantized.NativeQuantizedWeight():
            return native_quantized.linear(x, weight, bias, dtype)
        case QuantizedMatrix():
            return plain_quantized.quantized_linear(x, weight, bias, dtype)
        case Tensor():
            return plain_linear.linear(x, weight, bias, dtype)


@replaceable
def embedding(row_ids: Tensor, weight: Tensor | PackedWeight, dtype: torch.dtype) -> Tensor:
    """The rows [T] of a matrix [V, E], which was packed with has_rows if it was, in the model's dtype: [T, E]."""
    match weight:
        case native_linear.NativeWeight():
            return native_linear.rows(weight, row_ids)
        case native_quantized.NativeQuantizedWeight():
            return native_quantized.rows(weight, row_ids)
        case QuantizedMatrix():
            return plain_quantized.dequantize(weight, row_ids).to(dtype)
        case Tensor():
            return torch.nn.functional.embedding(row_ids, weight)
        case onednn.OneDnnWeight():
            raise AssertionError("oneDNN's weights have no rows")


def fuse_decoder(decoder: PlainDecoder[Tensor | PackedWeight]) -> NativePass | None:
    """What runs a step of the whole decoder in one call; None where it is to go operation by operation."""
    library = native_library(decoder.norm)
    if is_any_replaced() or library is None or not native_pass.can_pass(decoder):
        return None
    return NativePass(library, cast(PlainDecoder[native_pass.NativeForm], decoder))


warn_of_unknown(name for name in [*__all__, *sampling_dispatch.__all__] if name.islower())
