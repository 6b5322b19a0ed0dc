"""A plain decoder: what it is made of, and its step in the other operations' references."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

import torch
from torch import Tensor
from torch.nn import functional as F

from kvasir_kernels.linear.reference import linear
from kvasir_kernels.paged_attention.reference import paged_attention
from kvasir_kernels.paged_cache import AttentionBatch, LayerCache
from kvasir_kernels.rms_norm.reference import add_rms_norm
from kvasir_kernels.rotate_and_write.reference import HeadNorms, rotate_and_write
from kvasir_kernels.silu_mul.reference import silu_mul

Weight_co = TypeVar("Weight_co", covariant=True)


@dataclass(frozen=True, slots=True)
class Affine(Generic[Weight_co]):
    """weight: [O, E], in some form. bias: [O]."""

    weight: Weight_co
    bias: Tensor | None


@dataclass(frozen=True, slots=True, kw_only=True)
class PlainLayer(Generic[Weight_co]):
    """qkv: H + 2K heads of D; gate_up: gate first. window: how many tokens a token sees, itself included."""

    attention_norm: Tensor
    qkv: Affine[Weight_co]
    head_norms: HeadNorms | None
    output: Affine[Weight_co]
    feed_forward_norm: Tensor
    gate_up: Affine[Weight_co]
    down: Affine[Weight_co]
    window: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class PlainDecoder(Generic[Weight_co]):
    """Layers of attention and SwiGLU, one norm before each.

    embedding: [V, E]. angles: [max_positions, D] float32, each position's cosines and sines. eps: of all norms.
    """

    embedding: Weight_co | Tensor
    layers: tuple[PlainLayer[Weight_co], ...]
    norm: Tensor
    angles: Tensor
    eps: float
    num_heads: int
    num_kv_heads: int
    head_dim: int


@dataclass(frozen=True, slots=True)
class StepTokens:
    """token_ids, positions, slots: [T] int64 in the order of `batch`; a slot of -1 is padding.

    wanted: [W] int64, the rows asked for, ascending: of each sequence some of its last, or none. None: all.
    """

    token_ids: Tensor
    positions: Tensor
    slots: Tensor
    batch: AttentionBatch
    wanted: Tensor | None = None


def decoder_pass(decoder: PlainDecoder[Tensor], step: StepTokens, caches: Sequence[LayerCache]) -> Tensor:
    """Return the last hidden states of the wanted tokens, [W, E]; writes all tokens' keys and values to `caches`."""
    cos, sin = decoder.angles[step.positions].chunk(2, dim=-1)
    update = F.embedding(step.token_ids, decoder.embedding)
    residual, scale = torch.zeros_like(update), decoder.head_dim**-0.5
    for layer, cache in zip(decoder.layers, caches, strict=True):
        normed, residual = add_rms_norm(update, residual, layer.attention_norm, decoder.eps)
        heads = _map(normed, layer.qkv).view(len(normed), -1, decoder.head_dim)
        query = rotate_and_write(heads, layer.head_norms, cos, sin, step.slots, cache)
        update = _map(paged_attention(query, cache, step.batch, scale, layer.window).flatten(1), layer.output)
        normed, residual = add_rms_norm(update, residual, layer.feed_forward_norm, decoder.eps)
        update = _map(silu_mul(_map(normed, layer.gate_up)), layer.down)
    hidden, _ = add_rms_norm(update, residual, decoder.norm, decoder.eps)
    return hidden if step.wanted is None else hidden[step.wanted]


def _map(x: Tensor, affine: Affine[Tensor]) -> Tensor:
    return linear(x, affine.weight, affine.bias, x.dtype)
