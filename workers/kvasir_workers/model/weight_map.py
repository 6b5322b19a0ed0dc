"""Which checkpoint tensor goes to which parameter of the decoder, and to which rows of it where several are fused."""

from collections.abc import Iterator
from dataclasses import dataclass

from kvasir_workers.model.spec import DecoderSpec


@dataclass(frozen=True, slots=True)
class Place:
    """Rows `start` to `start + num_rows` of a decoder parameter."""

    parameter: str
    start: int
    num_rows: int


def weight_map(spec: DecoderSpec) -> dict[str, Place]:
    """Return the place of every tensor that a checkpoint of `spec` must hold, by the tensor's name."""
    places = {
        "model.embed_tokens.weight": Place("embedding.weight", 0, spec.vocab_size),
        "model.norm.weight": Place("norm.weight", 0, spec.hidden_size),
    }
    if not spec.tie_word_embeddings:
        places["lm_head.weight"] = Place("lm_head.weight", 0, spec.vocab_size)
    for index in range(spec.num_layers):
        for source, place in _layer(spec):
            qualified = Place(f"layers.{index}.{place.parameter}", place.start, place.num_rows)
            places[f"model.layers.{index}.{source}"] = qualified
    return places


def is_ignored(name: str, spec: DecoderSpec) -> bool:
    """Tell whether a checkpoint tensor repeats what the decoder has from elsewhere."""
    return name.endswith("rotary_emb.inv_freq") or (name == "lm_head.weight" and spec.tie_word_embeddings)


def _layer(spec: DecoderSpec) -> Iterator[tuple[str, Place]]:
    yield "input_layernorm.weight", Place("attention_norm.weight", 0, spec.hidden_size)
    yield from _attention(spec)
    yield "post_attention_layernorm.weight", Place("feed_forward_norm.weight", 0, spec.hidden_size)
    gate_and_up = [("mlp.gate_proj", spec.intermediate_size), ("mlp.up_proj", spec.intermediate_size)]
    yield from _fused("feed_forward.gate_up", gate_and_up, bias=spec.mlp_bias)
    yield from _fused("feed_forward.down", [("mlp.down_proj", spec.hidden_size)], bias=spec.mlp_bias)


def _attention(spec: DecoderSpec) -> Iterator[tuple[str, Place]]:
    query_rows, key_rows = spec.num_heads * spec.head_dim, spec.num_kv_heads * spec.head_dim
    qkv = [("self_attn.q_proj", query_rows), ("self_attn.k_proj", key_rows), ("self_attn.v_proj", key_rows)]
    yield from _fused("attention.qkv", qkv, bias=spec.qkv_bias)
    yield from _fused("attention.output", [("self_attn.o_proj", spec.hidden_size)], bias=spec.output_bias)
    if spec.qk_norm:
        yield "self_attn.q_norm.weight", Place("attention.query_norm.weight", 0, spec.head_dim)
        yield "self_attn.k_norm.weight", Place("attention.key_norm.weight", 0, spec.head_dim)


def _fused(module: str, sources: list[tuple[str, int]], *, bias: bool) -> Iterator[tuple[str, Place]]:
    """Stack the sources' rows in one module, in the order given."""
    start = 0
    for source, num_rows in sources:
        for kind in ("weight", "bias") if bias else ("weight",):
            yield f"{source}.{kind}", Place(f"{module}.{kind}", start, num_rows)
        start += num_rows
