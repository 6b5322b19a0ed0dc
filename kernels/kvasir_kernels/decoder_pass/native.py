"""A step through a whole plain decoder by one call of the C++ kernel."""

import ctypes
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from kvasir_kernels.decoder_pass.reference import Affine, PlainDecoder, PlainLayer, StepTokens
from kvasir_kernels.linear.native import NativeWeight
from kvasir_kernels.native.library import Kernel, KernelLibrary
from kvasir_kernels.paged_cache import LayerCache
from kvasir_kernels.quantized_linear.native import NativeQuantizedWeight

_decoder_pass = Kernel("decoder_pass", "ppppppipppippippip")

_LANES = 16

_NO_WINDOW = 2**40


class _Shape(ctypes.Structure):
    """As kernel.cpp lays it out."""

    _fields_ = (
        *((name, ctypes.c_int64) for name in ("num_layers", "hidden_size", "intermediate_size")),
        *((name, ctypes.c_int64) for name in ("num_heads", "num_kv_heads", "head_dim", "page_size")),
        *((name, ctypes.c_float) for name in ("eps", "scale")),
    )


NativeForm = NativeWeight | NativeQuantizedWeight

_PACKED, _AS_IT_LIES = 0, 1
"""Forms of a matrix beside the numbers of bits of quantized ones."""


def can_pass(decoder: PlainDecoder[object]) -> bool:
    """Whether the kernel takes a decoder of this form: all matrices packed for it, in one dtype."""
    weights = [weight for layer in decoder.layers for weight in _weights(layer)]
    return decoder.head_dim % _LANES == 0 and all(_is_of(decoder.norm.dtype, weight) for weight in weights)


def _weights(layer: PlainLayer[object]) -> tuple[object, ...]:
    return layer.qkv.weight, layer.output.weight, layer.gate_up.weight, layer.down.weight


def _is_of(dtype: torch.dtype, weight: object) -> bool:
    match weight:
        case NativeWeight():
            return weight.packed.dtype == dtype
        case NativeQuantizedWeight():
            return weight.dtype == dtype
        case _:
            return False


class NativePass:
    """The addresses of a decoder's weights, as the kernel reads them; the weights stay where they are from now on."""

    def __init__(self, library: KernelLibrary, decoder: PlainDecoder[NativeForm]) -> None:
        self._library = library
        self._decoder = decoder
        self._layers = torch.tensor([list(_layer_row(layer)) for layer in decoder.layers], dtype=torch.int64)
        self._caches: Sequence[LayerCache] = ()
        self._cache_table = torch.empty(0, dtype=torch.int64)
        first = decoder.layers[0]
        self._shape = _Shape(
            num_layers=len(decoder.layers),
            hidden_size=first.qkv.weight.num_inputs,
            intermediate_size=first.down.weight.num_inputs,
            num_heads=decoder.num_heads,
            num_kv_heads=decoder.num_kv_heads,
            head_dim=decoder.head_dim,
            page_size=0,
            eps=decoder.eps,
            scale=decoder.head_dim**-0.5,
        )
        self._embedding = torch.tensor(_matrix_row(decoder.embedding, None), dtype=torch.int64)

    def run(self, step: StepTokens, caches: Sequence[LayerCache]) -> Tensor:
        """See reference.py."""
        if caches is not self._caches:
            self._look_up(caches)
        decoder, batch = self._decoder, step.batch
        num_tokens, num_sequences = len(step.token_ids), len(batch.query_lens)
        wanted = torch.arange(num_tokens) if step.wanted is None else step.wanted
        out = decoder.norm.new_empty(len(wanted), self._shape.hidden_size)
        lengths = batch.lengths.data_ptr()
        _decoder_pass(
            self._library, out.dtype, ctypes.addressof(self._shape), self._layers.data_ptr(),
            self._cache_table.data_ptr(), step.token_ids.data_ptr(), step.positions.data_ptr(), step.slots.data_ptr(),
            num_tokens, self._embedding.data_ptr(), decoder.angles.data_ptr(),
            batch.page_tables.data_ptr(), batch.page_tables.stride(0), lengths, lengths + 8 * num_sequences,
            num_sequences, decoder.norm.data_ptr(), wanted.data_ptr(), len(wanted), out.data_ptr(),
        )  # fmt: skip
        return out

    def _look_up(self, caches: Sequence[LayerCache]) -> None:
        """Kept with the addresses, so that no others can come to be at the same place."""
        assert len(caches) == len(self._decoder.layers), f"{len(caches)} caches for {len(self._decoder.layers)} layers"
        rows = [(cache.key.data_ptr(), cache.value.data_ptr()) for cache in caches]
        self._cache_table = torch.tensor(rows, dtype=torch.int64)
        self._shape.page_size = caches[0].key.shape[1]
        self._caches = caches


def _layer_row(layer: PlainLayer[NativeForm]) -> Iterator[int]:
    norms = layer.head_norms
    yield layer.attention_norm.data_ptr()
    yield from _affine_row(layer.qkv)
    yield from (0, 0) if norms is None else (norms.query.data_ptr(), norms.key.data_ptr())
    yield from _affine_row(layer.output)
    yield layer.feed_forward_norm.data_ptr()
    yield from _affine_row(layer.gate_up)
    yield from _affine_row(layer.down)
    yield layer.window or _NO_WINDOW


def _affine_row(affine: Affine[NativeForm]) -> tuple[int, ...]:
    return _matrix_row(affine.weight, affine.bias)


def _matrix_row(weight: NativeForm | Tensor, bias: Tensor | None) -> tuple[int, ...]:
    bias_address = 0 if bias is None else bias.data_ptr()
    match weight:
        case NativeWeight():
            return weight.packed.data_ptr(), bias_address, 0, _PACKED, 0
        case NativeQuantizedWeight():
            addresses = (weight.packed.data_ptr(), bias_address, weight.scales.data_ptr())
            return *addresses, weight.num_bits, weight.group_size
        case Tensor():
            return weight.data_ptr(), bias_address, 0, _AS_IT_LIES, 0
