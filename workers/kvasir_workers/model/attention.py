"""Grouped-query self-attention over the paged cache."""

from dataclasses import dataclass

from torch import Tensor, nn

from kvasir_kernels.dispatch import HeadNorms, Quantized, paged_attention, rotate_and_write
from kvasir_kernels.paged_cache import CacheScales, LayerCache, StepAttention
from kvasir_workers.model.linear import Linear
from kvasir_workers.model.norm import RMSNorm
from kvasir_workers.model.spec import DecoderSpec


@dataclass(frozen=True, slots=True)
class StepContext:
    """What every layer of a step shares.

    cos, sin: [T, D / 2] float32, the angles of the tokens' positions. slots: [T] int64, where their keys and values go.
    """

    cos: Tensor
    sin: Tensor
    slots: Tensor
    batch: StepAttention


class Attention(nn.Module):
    """One layer's attention; the query, key and value projections are one fused matrix of H + 2K heads."""

    def __init__(self, spec: DecoderSpec, layer_index: int) -> None:
        super().__init__()
        self.head_dim = spec.head_dim
        self.scale = spec.head_dim**-0.5
        self.window = spec.windows[layer_index]
        num_projected_heads = spec.num_heads + 2 * spec.num_kv_heads
        self.qkv = Linear(spec.hidden_size, num_projected_heads * spec.head_dim, bias=spec.qkv_bias)
        self.output = Linear(spec.num_heads * spec.head_dim, spec.hidden_size, bias=spec.output_bias)
        self.query_norm = RMSNorm(spec.head_dim, spec.norm_eps) if spec.qk_norm else None
        self.key_norm = RMSNorm(spec.head_dim, spec.norm_eps) if spec.qk_norm else None
        self.cache_scales: CacheScales | None = None

    def forward(self, hidden: Tensor | Quantized, step: StepContext, cache: LayerCache) -> Tensor:
        """Return what the layer adds to the residual, [T, E]; writes the step's keys and values to `cache`."""
        projected = self.qkv(hidden)
        heads = projected.view(len(projected), -1, self.head_dim)
        cache = self._scaled(cache)
        query = rotate_and_write(heads, self.head_norms(), step.cos, step.sin, step.slots, cache)
        attended = paged_attention(query, cache, step.batch, self.scale, self.window)
        update: Tensor = self.output(attended.flatten(1))
        return update

    def _scaled(self, cache: LayerCache) -> LayerCache:
        """The scales are the model's, whoever owns the pages."""
        return cache if self.cache_scales is None else LayerCache(cache.key, cache.value, self.cache_scales)

    def head_norms(self) -> HeadNorms | None:
        """Of queries and keys, in families that have them."""
        if self.query_norm is None or self.key_norm is None:
            return None
        return HeadNorms(self.query_norm.weight, self.key_norm.weight, self.query_norm.eps)
