"""The only place that chooses how an operation is computed; everybody else imports operations from here.

On a CPU that is the C++ kernel, built for this machine, or the torch reference where there is none or it doesn't take
what it is given. On a GPU it is the Triton kernel; Triton is imported with the first tensor that lies there.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import cast

import torch
from torch import Tensor

from kvasir_kernels.decoder_pass import native as native_pass
from kvasir_kernels.decoder_pass.native import NativePass
from kvasir_kernels.decoder_pass.reference import PlainDecoder
from kvasir_kernels.largest_logit import native as native_largest
from kvasir_kernels.largest_logit import reference as plain_largest
from kvasir_kernels.linear import native as native_linear
from kvasir_kernels.linear import onednn
from kvasir_kernels.linear import reference as plain_linear
from kvasir_kernels.mask_logits import native as native_mask
from kvasir_kernels.mask_logits import reference as plain_mask
from kvasir_kernels.native.build import cpu_has
from kvasir_kernels.native.library import KernelLibrary, load_library, takes
from kvasir_kernels.paged_attention import native as native_attention
from kvasir_kernels.paged_attention import reference as plain_attention
from kvasir_kernels.paged_cache import AttentionBatch, LayerCache
from kvasir_kernels.quantized_linear import native as native_quantized
from kvasir_kernels.quantized_linear import reference as plain_quantized
from kvasir_kernels.quantized_linear.reference import QuantizedMatrix
from kvasir_kernels.rms_norm import native as native_norm
from kvasir_kernels.rms_norm import reference as plain_norm
from kvasir_kernels.rotary.reference import apply_rotary
from kvasir_kernels.rotate_and_write import native as native_rotation
from kvasir_kernels.rotate_and_write import reference as plain_rotation
from kvasir_kernels.rotate_and_write.reference import HeadNorms
from kvasir_kernels.silu_mul import native as native_gate
from kvasir_kernels.silu_mul import reference as plain_gate
from kvasir_kernels.write_kv.reference import write_kv

__all__ = [
    "HeadNorms",
    "NativePass",
    "PackedWeight",
    "QuantizedMatrix",
    "add_rms_norm",
    "apply_rotary",
    "embedding",
    "fuse_decoder",
    "largest_logit",
    "linear",
    "mask_logits",
    "pack_quantized",
    "pack_weight",
    "paged_attention",
    "prepare",
    "rms_norm",
    "rotate_and_write",
    "silu_mul",
    "without_native_kernels",
    "write_kv",
]

QuantizedWeight = QuantizedMatrix | native_quantized.NativeQuantizedWeight

PackedWeight = native_linear.NativeWeight | onednn.OneDnnWeight | QuantizedWeight

_MATRIX_UNITS = "amx_bf16"
"""oneDNN uses them, our kernel doesn't."""


class _Choice:
    """Of the process: steps may run in a thread of their own."""

    is_native = True


@contextmanager
def without_native_kernels() -> Iterator[None]:
    """Compute as a machine without compiler would: for tests and measurements."""
    before, _Choice.is_native = _Choice.is_native, False
    try:
        yield
    finally:
        _Choice.is_native = before


def prepare(device: torch.device) -> None:
    """Build and load now what the first operation on the device would have to wait for."""
    if device.type == "cpu":
        load_library()


def _native(x: Tensor) -> KernelLibrary | None:
    return load_library() if takes(x.dtype) and x.device.type == "cpu" and _Choice.is_native else None


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    if x.is_cuda:
        from kvasir_kernels.rms_norm import kernel

        return kernel.rms_norm(x, weight, eps)
    library = _native(x)
    if library is None or not x.is_contiguous():
        return plain_norm.rms_norm(x, weight, eps)
    return native_norm.rms_norm(library, x, weight, eps)


def add_rms_norm(x: Tensor, residual: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    if x.is_cuda:
        from kvasir_kernels.rms_norm import kernel

        return kernel.add_rms_norm(x, residual, weight, eps)
    library = _native(x)
    if library is None:
        return plain_norm.add_rms_norm(x, residual, weight, eps)
    return native_norm.add_rms_norm(library, x, residual, weight, eps)


def mask_logits(logits: Tensor, rows: tuple[int, ...], bits: Tensor) -> None:
    library = _native(logits)
    if library is None or logits.dtype != torch.float32 or not logits.is_contiguous():
        plain_mask.mask_logits(logits, rows, bits)
    else:
        native_mask.mask_logits(library, logits, rows, bits)


def largest_logit(logits: Tensor) -> tuple[Tensor, Tensor]:
    library = _native(logits)
    if library is None or logits.dtype != torch.float32 or not logits.is_contiguous():
        return plain_largest.largest_logit(logits)
    return native_largest.largest_logit(library, logits)


def silu_mul(gate_up: Tensor) -> Tensor:
    if gate_up.is_cuda:
        from kvasir_kernels.silu_mul import kernel

        return kernel.silu_mul(gate_up)
    library = _native(gate_up)
    return plain_gate.silu_mul(gate_up) if library is None else native_gate.silu_mul(library, gate_up)


def rotate_and_write(
    heads: Tensor, norms: HeadNorms | None, cos: Tensor, sin: Tensor, slots: Tensor, cache: LayerCache
) -> Tensor:
    if heads.is_cuda:
        from kvasir_kernels.rotate_and_write import kernel

        return kernel.rotate_and_write(heads, norms, cos, sin, slots, cache)
    library = _native(heads)
    if library is None or not native_rotation.can_rotate(heads):
        return plain_rotation.rotate_and_write(heads, norms, cos, sin, slots, cache)
    return native_rotation.rotate_and_write(library, heads, norms, cos, sin, slots, cache)


def paged_attention(
    query: Tensor, cache: LayerCache, batch: AttentionBatch, scale: float, window: int | None
) -> Tensor:
    if query.is_cuda:
        from kvasir_kernels.paged_attention import kernel

        if kernel.can_attend(query):
            return kernel.paged_attention(query, cache, batch, scale, window)
    library = _native(query)
    if library is None or not native_attention.can_attend(query):
        return plain_attention.paged_attention(query, cache, batch, scale, window)
    return native_attention.paged_attention(library, query, cache, batch, scale, window)


def pack_weight(weight: Tensor, *, has_rows: bool = False) -> PackedWeight | None:
    """The matrix [O, E] in the order in which it is read fastest; None where it is best left as it is.

    has_rows: `embedding` will be asked for its rows. The caller lets go of `weight`: nothing refers to it.
    """
    library = _native(weight)
    if library is not None and native_linear.can_pack(weight) and not cpu_has(_MATRIX_UNITS):
        return native_linear.pack(library, weight)
    if weight.device.type == "cpu" and onednn.can_pack(weight) and not has_rows:
        return onednn.pack(weight)
    return None


def pack_quantized(matrix: QuantizedMatrix, dtype: torch.dtype) -> QuantizedWeight:
    """The matrix in the order in which it is read fastest, for activations of `dtype`; as it is where there is none."""
    library = load_library() if takes(dtype) and matrix.codes.device.type == "cpu" and _Choice.is_native else None
    if library is None or not native_quantized.can_pack(matrix):
        return matrix
    return native_quantized.pack(library, matrix, dtype)


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
    library = _native(decoder.norm)
    if library is None or not native_pass.can_pass(decoder):
        return None
    return NativePass(library, cast(PlainDecoder[native_pass.NativeForm], decoder))
