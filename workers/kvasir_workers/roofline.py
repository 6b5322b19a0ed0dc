"""What a model asks of a device at best: bytes to read and products to compute, against what the device can do.

Real steps take longer; how much longer is what is worth knowing. Idea: Williams et al., *Roofline* (2009).
"""

import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

from kvasir_workers.memory import page_bytes
from kvasir_workers.model.spec import DecoderSpec
from kvasir_workers.quantization.scheme import QuantizationSpec

_READ_BYTES = 2**28
_PRODUCT_SIZE = 1024
_NUM_TRIALS = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceRates:
    """bytes_per_s: reading memory. flops_per_s: matrix products, a multiplication and an addition counted as two."""

    bytes_per_s: float
    flops_per_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelWork:
    """num_products: multiplications per token in all matrices but the head's; head_products: in the head's.

    attention_products: per token and token of its context. kv_bytes: that a token leaves in the cache, with scales.
    read_bytes: of weights, that every step reads once.
    """

    num_products: int
    head_products: int
    attention_products: int
    kv_bytes: int
    read_bytes: int

    @classmethod
    def of(
        cls,
        spec: DecoderSpec,
        dtype: torch.dtype,
        quantization: QuantizationSpec | None = None,
        cache_dtype: torch.dtype | None = None,
    ) -> "ModelWork":
        """cache_dtype: of keys and values, if it is not the model's."""
        width, query = spec.hidden_size, spec.num_heads * spec.head_dim
        key_value = 2 * spec.num_kv_heads * spec.head_dim
        layer = width * (query + key_value) + query * width + 3 * width * spec.intermediate_size
        num_products, head_products = spec.num_layers * layer, width * spec.vocab_size
        layer_bits = head_bits = 8.0 * dtype.itemsize
        if quantization is not None:
            layer_bits = quantization.layers.num_bits_per_weight(width)
            head_bits = head_bits if quantization.head is None else quantization.head.num_bits_per_weight(width)
        return cls(
            num_products=num_products,
            head_products=head_products,
            attention_products=2 * spec.num_layers * query,
            kv_bytes=page_bytes(spec, 1, cache_dtype or dtype),
            read_bytes=round((num_products * layer_bits + head_products * head_bits) / 8),
        )


def decode_s(work: ModelWork, rates: DeviceRates, num_sequences: int, context_len: int) -> float:
    """Seconds of a step that gives each sequence a token after context_len others."""
    num_bytes = work.read_bytes + num_sequences * context_len * work.kv_bytes
    products = work.num_products + work.head_products + context_len * work.attention_products
    return max(num_bytes / rates.bytes_per_s, 2 * num_sequences * products / rates.flops_per_s)


def prefill_s(work: ModelWork, rates: DeviceRates, num_tokens: int) -> float:
    """Seconds to compute a prompt and its first token. A token sees half of the prompt on average."""
    products = num_tokens * (work.num_products + num_tokens / 2 * work.attention_products) + work.head_products
    return max(work.read_bytes / rates.bytes_per_s, 2 * products / rates.flops_per_s)


def measure_rates(device: torch.device, dtype: torch.dtype) -> DeviceRates:
    """The best of a few trials on the device as it is now, in about a second."""
    block = torch.ones(_READ_BYTES // 4, dtype=torch.float32, device=device)
    left, right = (torch.ones(_PRODUCT_SIZE, _PRODUCT_SIZE, dtype=dtype, device=device) for _ in range(2))
    read_s = _best_seconds(lambda: block.sum(), device)
    product_s = _best_seconds(lambda: left @ right, device)
    return DeviceRates(bytes_per_s=_READ_BYTES / read_s, flops_per_s=2 * _PRODUCT_SIZE**3 / product_s)


def _best_seconds(act: Callable[[], object], device: torch.device) -> float:
    def seconds() -> float:
        start = time.perf_counter()
        act()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return time.perf_counter() - start

    return min(seconds() for _ in range(1 + _NUM_TRIALS))
