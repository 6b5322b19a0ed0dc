"""Which decoders a step may go through in one call, and what that call needs to know of them."""

from torch import Tensor, nn

from kvasir_kernels.decoder_pass.reference import Affine, PlainDecoder, PlainLayer
from kvasir_kernels.dispatch import PackedWeight, fuse_decoder
from kvasir_workers.model.attention import Attention
from kvasir_workers.model.decoder import Decoder, DecoderLayer, FeedForward
from kvasir_workers.model.linear import Linear, TokenEmbedding
from kvasir_workers.model.norm import RMSNorm

Weights = Tensor | PackedWeight

_PLAIN = (
    Attention,
    DecoderLayer,
    FeedForward,
    Linear,
    RMSNorm,
    nn.ModuleList,
    TokenEmbedding,
)
"""Whatever else a decoder holds (shards of a gang, adapters, experts) does more than the one call does."""


def fuse(decoder: Decoder) -> None:
    """Let the decoder take the one call where there is one for it. Its weights are final from here on."""
    plain = plain_form(decoder)
    decoder.fused = fuse_decoder(plain) if plain is not None else None


def plain_form(decoder: Decoder) -> PlainDecoder[Weights] | None:
    """What the decoder is made of; None if it is not made of plain parts alone."""
    if not all(_is_plain(part) for name, part in decoder.named_modules() if name not in ("", "lm_head")):
        return None
    if not hasattr(decoder, "embedding") or not hasattr(decoder, "norm") or decoder.cache_scales:
        return None
    spec = decoder.spec
    return PlainDecoder(
        embedding=decoder.embedding.weights,
        layers=tuple(_plain_layer(layer) for layer in decoder.layers if isinstance(layer, DecoderLayer)),
        norm=decoder.norm.weight,
        angles=decoder.rotary.rows,
        eps=spec.norm_eps,
        num_heads=spec.num_heads,
        num_kv_heads=spec.num_kv_heads,
        head_dim=spec.head_dim,
    )


def _is_plain(part: nn.Module) -> bool:
    return type(part) in _PLAIN and not part._forward_hooks and not part._forward_pre_hooks


def _plain_layer(layer: DecoderLayer) -> PlainLayer[Weights]:
    attention, feed_forward = layer.attention, layer.feed_forward
    return PlainLayer(
        attention_norm=layer.attention_norm.weight,
        qkv=_affine(attention.qkv),
        head_norms=attention.head_norms(),
        output=_affine(attention.output),
        feed_forward_norm=layer.feed_forward_norm.weight,
        gate_up=_affine(feed_forward.gate_up),
        down=_affine(feed_forward.down),
        window=attention.window,
    )


def _affine(linear: Linear) -> Affine[Weights]:
    return Affine(linear.weights, linear.bias)
