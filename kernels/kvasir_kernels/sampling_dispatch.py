"""Chooses how what happens beside the model is computed, as dispatch.py does for the model: inputs, logits, tokens."""

import torch
from torch import Tensor

from kvasir_kernels.largest_logit import native as native_largest
from kvasir_kernels.largest_logit import reference as plain_largest
from kvasir_kernels.mask_logits import native as native_mask
from kvasir_kernels.mask_logits import reference as plain_mask
from kvasir_kernels.native.choice import native_library
from kvasir_kernels.penalise import reference as plain_penalties
from kvasir_kernels.penalise.reference import SeenTable, SeenTokens
from kvasir_kernels.sample_tokens import reference as plain_sampling
from kvasir_kernels.sample_tokens.reference import SamplingRules
from kvasir_kernels.unpack_decodes import reference as plain_unpacking
from kvasir_kernels.unpack_decodes.reference import DecodeInputs
from kvasir_kernels.user_kernels import replaceable

__all__ = [
    "DecodeInputs",
    "SamplingRules",
    "SeenTable",
    "SeenTokens",
    "largest_logit",
    "mask_logits",
    "penalise",
    "sample_tokens",
    "unpack_decodes",
]


@replaceable
def sample_tokens(logits: Tensor, rules: SamplingRules) -> tuple[Tensor, Tensor]:
    if logits.is_cuda:
        from kvasir_kernels.sample_tokens import kernel

        return kernel.sample_tokens(logits, rules)
    return plain_sampling.sample_tokens(logits, rules)


@replaceable
def penalise(logits: Tensor, seen: SeenTokens | SeenTable) -> None:
    if logits.is_cuda:
        from kvasir_kernels.penalise import kernel

        kernel.penalise(logits, seen)
    else:
        plain_penalties.penalise(logits, seen)


@replaceable
def mask_logits(logits: Tensor, rows: tuple[int, ...], bits: Tensor) -> None:
    if logits.is_cuda:
        from kvasir_kernels.mask_logits import kernel

        kernel.mask_logits(logits, rows, bits)
        return
    library = native_library(logits)
    if library is None or logits.dtype != torch.float32 or not logits.is_contiguous():
        plain_mask.mask_logits(logits, rows, bits)
    else:
        native_mask.mask_logits(library, logits, rows, bits)


@replaceable
def largest_logit(logits: Tensor) -> tuple[Tensor, Tensor]:
    library = native_library(logits)
    if library is None or logits.dtype != torch.float32 or not logits.is_contiguous():
        return plain_largest.largest_logit(logits)
    return native_largest.largest_logit(library, logits)


@replaceable
def unpack_decodes(packed: Tensor, said: Tensor, num_rows: int, page_size: int, inputs: DecodeInputs) -> None:
    if packed.is_cuda:
        from kvasir_kernels.unpack_decodes import kernel

        kernel.unpack_decodes(packed, said, num_rows, page_size, inputs)
    else:
        plain_unpacking.unpack_decodes(packed, said, num_rows, page_size, inputs)
