"""The decoder: one class for every family, told apart by its spec.

token ids -> embedding -> L x ( norm -> attention -> +  norm -> feed-forward -> + ) -> norm -> logits
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from kvasir_kernels.decoder_pass.reference import StepTokens
from kvasir_kernels.dispatch import NativePass, Quantized, silu_mul, silu_mul_float8
from kvasir_kernels.paged_cache import AttentionBatch, CacheScales, LayerCache, StepAttention
from kvasir_workers.model.attention import Attention, StepContext
from kvasir_workers.model.linear import Linear, LogitHead, Matrix, TokenEmbedding
from kvasir_workers.model.norm import RMSNorm
from kvasir_workers.model.rotary import RotaryTable
from kvasir_workers.model.spec import DecoderSpec
from kvasir_workers.quantization.scheme import QuantizationSpec


@dataclass(frozen=True, slots=True, kw_only=True)
class DecoderPart:
    """Which ends a decoder has whose layers are only some of the model's."""

    has_embedding: bool
    has_norm: bool
    has_head: bool


WHOLE = DecoderPart(has_embedding=True, has_norm=True, has_head=True)


class FeedForward(nn.Module):
    """SwiGLU; gate and up projections are one fused matrix, gate first."""

    def __init__(self, spec: DecoderSpec) -> None:
        super().__init__()
        self.gate_up = Linear(spec.hidden_size, 2 * spec.intermediate_size, bias=spec.mlp_bias)
        self.down = Linear(spec.intermediate_size, spec.hidden_size, bias=spec.mlp_bias)

    def forward(self, hidden: Tensor | Quantized) -> Tensor:
        """Return what the layer adds to the residual: [T, E]."""
        gate_up, form = self.gate_up(hidden), self.down.input_form
        update: Tensor = self.down(silu_mul(gate_up) if form is None else silu_mul_float8(gate_up, form))
        return update


class DecoderLayer(nn.Module):
    """Attention and feed-forward, each normalised before and added to the residual."""

    def __init__(self, spec: DecoderSpec, layer_index: int) -> None:
        super().__init__()
        self.attention_norm = RMSNorm(spec.hidden_size, spec.norm_eps)
        self.attention = Attention(spec, layer_index)
        self.feed_forward_norm = RMSNorm(spec.hidden_size, spec.norm_eps)
        self.feed_forward = FeedForward(spec)

    def forward(self, update: Tensor, residual: Tensor, step: StepContext, cache: LayerCache) -> tuple[Tensor, Tensor]:
        """Return the next update and residual, [T, E] each; their sum is the hidden state.

        An update is added only where it is next normalised, so that addition and norm are one operation.
        """
        normed, residual = self.attention_norm.add_for(self.attention.qkv.input_form, update, residual)
        update = self.attention(normed, step, cache)
        normed, residual = self.feed_forward_norm.add_for(self.feed_forward.gate_up.input_form, update, residual)
        return self.feed_forward(normed), residual


class Decoder(nn.Module):
    """A decoder-only language model over a paged cache; run it under `torch.inference_mode`.

    Built whole on `device` with its memory allocated and nothing in it: `loader` fills the weights. Matrices that a
    quantization makes float8 are so from the start; integers they become when they are packed.
    """

    def __init__(
        self,
        spec: DecoderSpec,
        dtype: torch.dtype,
        device: torch.device,
        part: DecoderPart = WHOLE,
        quantization: QuantizationSpec | None = None,
    ) -> None:
        super().__init__()
        self.spec, self.dtype = spec, dtype
        with torch.device("meta"):  # no time is spent on initial values
            if part.has_embedding:
                self.embedding = TokenEmbedding(spec.vocab_size, spec.hidden_size)
            self.layers = nn.ModuleList(DecoderLayer(spec, index) for index in range(spec.num_layers))
            if part.has_norm:
                self.norm = RMSNorm(spec.hidden_size, spec.norm_eps)
            if part.has_head and not spec.tie_word_embeddings:
                self.lm_head = LogitHead(spec.vocab_size, spec.hidden_size)
        self._take_memory(dtype, torch.device("meta"))
        if quantization is not None:
            self._become_float8(quantization)
        self._take_memory(None, device)
        self.requires_grad_(False).eval()
        self.rotary = RotaryTable(spec.rotary, spec.head_dim, spec.max_position_embeddings, device)
        self.fused: NativePass | None = None

    def forward(
        self,
        token_ids: Tensor,
        positions: Tensor,
        slots: Tensor,
        caches: Sequence[LayerCache],
        batch: StepAttention,
        wanted: Tensor | None = None,
    ) -> Tensor:
        """Return the last hidden states of the wanted tokens, [W, E]; writes all tokens' keys and values to `caches`.

        token_ids, positions, slots: [T] int64, packed in the order of `batch`; a slot of -1 is padding.
        caches: one per layer. wanted: [W] int64, their rows, ascending, of each sequence some of its last, or none;
        None: of all tokens.
        """
        if self.fused is not None and isinstance(batch, AttentionBatch):
            return self.fused.run(StepTokens(token_ids, positions, slots, batch, wanted), caches)
        update, residual = self.run_layers(self.embedding(token_ids), positions, slots, caches, batch)
        if wanted is not None and len(wanted) < len(token_ids):
            update, residual = update[wanted], residual[wanted]
        return self.normalise(update, residual)

    def run_layers(
        self, hidden: Tensor, positions: Tensor, slots: Tensor, caches: Sequence[LayerCache], batch: StepAttention
    ) -> tuple[Tensor, Tensor]:
        """Return the last update and residual, [T, E] each, of the hidden states [T, E] that come in."""
        cos, sin = self.rotary.at(positions)
        step = StepContext(cos, sin, slots, batch)
        update, residual = hidden, torch.zeros_like(hidden)
        for layer, cache in zip(self.layers, caches, strict=True):
            update, residual = layer(update, residual, step, cache)
        return update, residual

    def normalise(self, update: Tensor, residual: Tensor) -> Tensor:
        """Return what the last layer leaves as the last hidden state, [T, E]."""
        normed, _ = self.norm.add(update, residual)
        return normed

    def logits(self, hidden: Tensor) -> Tensor:
        """Return the next-token logits of `hidden` [R, E]: [R, V] float32."""
        head: LogitHead = self.embedding if self.spec.tie_word_embeddings else self.lm_head
        return head.logits(hidden)

    @property
    def device(self) -> torch.device:
        """Of everything in it."""
        return self.rotary.rows.device

    def _take_memory(self, dtype: torch.dtype | None, device: torch.device) -> None:
        """As to_empty does, which on the meta device imports torch's decompositions and sympy (0.9 s, 43 MiB)."""
        self._apply(lambda old: torch.empty(old.shape, dtype=dtype or old.dtype, device=device))  # type: ignore[no-untyped-call]

    def _become_float8(self, quantization: QuantizationSpec) -> None:
        for name, matrix in self.matrices().items():
            if quantization.float8 is not None and isinstance(matrix, Linear) and name not in quantization.unquantized:
                matrix.become_float8(quantization.float8)

    def scale_cache(self, scales: Sequence[CacheScales] | None) -> None:
        """From now on caches are of 8 bits, and each layer's keys and values are stored by these scales; None: wide."""
        for index, layer in enumerate(self.layers):
            assert isinstance(layer, DecoderLayer)
            layer.attention.cache_scales = None if scales is None else scales[index]

    @property
    def cache_scales(self) -> list[CacheScales]:
        """Each layer's; none where caches are wide."""
        found = (part.cache_scales for part in self.modules() if isinstance(part, Attention))
        return [scales for scales in found if scales is not None]

    def pack_weights(self) -> None:
        """Put all matrices in the order in which the device reads them fastest; the weights are final from here on.

        One is copied at a time: no second copy of all is held.
        """
        for matrix in self.matrices().values():
            matrix.pack()

    def matrices(self) -> dict[str, Matrix]:
        """Those that are multiplied with, by the names of their weights among the parameters."""
        return {
            f"{name}.weight": module
            for name, module in self.named_modules()
            if isinstance(module, Matrix) and (not isinstance(module, TokenEmbedding) or self.spec.tie_word_embeddings)
        }
