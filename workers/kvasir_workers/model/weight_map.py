"""Which checkpoint tensor goes to which parameter of the decoder, and to which rows of it where several are fused."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Literal

from kvasir_workers.model.spec import DecoderSpec

Cut = Literal["whole", "vocabulary", "query heads", "kv heads", "gate", "query columns", "gate columns", "first rank"]
"""How a tensor is shared among tensor-parallel ranks: each has its rows of the vocabulary, of its heads, of its part of
the gate; the columns that those feed; or all of it. "first rank": what is added to a sum over the ranks."""

Content = Literal["numbers", "matrix", "float8", "row scales", "block scales", "input scale"]
"""Of a tensor. Matrices of layers may be float8 in a checkpoint, with scales in tensors beside them."""


@dataclass(frozen=True, slots=True)
class Place:
    """Rows `start` to `start + num_rows` of a decoder parameter, and how ranks share them.

    Scales are at the rows of the weights that they belong to.
    """

    parameter: str
    start: int
    num_rows: int
    cut: Cut = "whole"
    content: Content = "numbers"


def weight_map(spec: DecoderSpec) -> dict[str, Place]:
    """Return the place of every tensor that a checkpoint of `spec` must hold, by the tensor's name."""
    places = {
        "model.embed_tokens.weight": Place("embedding.weight", 0, spec.vocab_size, "vocabulary"),
        "model.norm.weight": Place("norm.weight", 0, spec.hidden_size),
    }
    if not spec.tie_word_embeddings:
        places["lm_head.weight"] = Place("lm_head.weight", 0, spec.vocab_size, "vocabulary")
    for index in range(spec.num_layers):
        for source, place in _layer(spec):
            qualified = f"layers.{index}.{place.parameter}"
            places[f"model.layers.{index}.{source}"] = replace(place, parameter=qualified)
    return places


_CACHE_SCALES = (".q_scale", ".k_scale", ".v_scale", ".output_scale")
"""Of an attention whose keys and values are stored in 8 bits; see cache_scales.py."""


def is_ignored(name: str, spec: DecoderSpec) -> bool:
    """Tell whether a checkpoint tensor repeats what the decoder has from elsewhere, or is no part of it."""
    is_aside = name.endswith(("rotary_emb.inv_freq", *_CACHE_SCALES))
    return is_aside or (name == "lm_head.weight" and spec.tie_word_embeddings)


def _layer(spec: DecoderSpec) -> Iterator[tuple[str, Place]]:
    yield "input_layernorm.weight", Place("attention_norm.weight", 0, spec.hidden_size)
    yield from _attention(spec)
    yield "post_attention_layernorm.weight", Place("feed_forward_norm.weight", 0, spec.hidden_size)
    gate_and_up = [_Source(f"mlp.{name}_proj", spec.intermediate_size, "gate") for name in ("gate", "up")]
    yield from _fused("feed_forward.gate_up", gate_and_up, bias=spec.mlp_bias)
    down = _Source("mlp.down_proj", spec.hidden_size, "gate columns")
    yield from _fused("feed_forward.down", [down], bias=spec.mlp_bias)


def _attention(spec: DecoderSpec) -> Iterator[tuple[str, Place]]:
    query_rows, key_rows = spec.num_heads * spec.head_dim, spec.num_kv_heads * spec.head_dim
    qkv = [
        _Source("self_attn.q_proj", query_rows, "query heads"),
        _Source("self_attn.k_proj", key_rows, "kv heads"),
        _Source("self_attn.v_proj", key_rows, "kv heads"),
    ]
    yield from _fused("attention.qkv", qkv, bias=spec.qkv_bias)
    output = _Source("self_attn.o_proj", spec.hidden_size, "query columns")
    yield from _fused("attention.output", [output], bias=spec.output_bias)
    if spec.qk_norm:
        yield "self_attn.q_norm.weight", Place("attention.query_norm.weight", 0, spec.head_dim)
        yield "self_attn.k_norm.weight", Place("attention.key_norm.weight", 0, spec.head_dim)


@dataclass(frozen=True, slots=True)
class _Source:
    name: str
    num_rows: int
    cut: Cut


def _fused(module: str, sources: list[_Source], *, bias: bool) -> Iterator[tuple[str, Place]]:
    """Stack the sources' rows in one module, in the order given."""
    start = 0
    for source in sources:
        yield f"{source.name}.weight", Place(f"{module}.weight", start, source.num_rows, source.cut, "matrix")
        if bias:
            cut: Cut = "first rank" if source.cut.endswith("columns") else source.cut
            yield f"{source.name}.bias", Place(f"{module}.bias", start, source.num_rows, cut)
        start += source.num_rows
