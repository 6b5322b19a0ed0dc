"""Decode steps of whole models with random weights: the model alone as one captured graph, and a whole engine's."""

import torch

from bench.gpu.bench import Bench
from bench.gpu.figures import OURS
from bench.gpu.sizes import ModelSize
from bench.gpu.steps import PAGE_SIZE, measure_steps
from kvasir_kernels.paged_cache import AttentionBatch, CacheScales, LayerCache
from kvasir_workers.model.decoder import Decoder
from kvasir_workers.model.linear import Linear
from kvasir_workers.model.spec import DecoderSpec, read_spec
from kvasir_workers.quantization.scheme import SCHEMES, QuantizationSpec

_DTYPE = torch.bfloat16


_FLOAT8 = SCHEMES["fp8"]


def measure_models(bench: Bench) -> None:
    """Each in bfloat16, then in FP8 beside it: weights alone, and with keys and values, too."""
    for model in bench.sizes.models:
        spec = _spec(model, bench.sizes.model_context + 256)
        wide, narrow = _decoder(spec, bench, None), _decoder(spec, bench, _FLOAT8)
        for num_sequences in bench.sizes.model_batches:
            ways = {
                "decode step": _Step(wide, num_sequences, _DTYPE, bench),
                "decode step, FP8": _Step(narrow, num_sequences, _DTYPE, bench),
                "decode step, FP8 and KV": _Step(narrow, num_sequences, torch.float8_e4m3fn, bench),
            }
            for part, step in ways.items():
                others = {} if step.decoder is wide else {"in bfloat16": ways["decode step"]}
                bench.measure(
                    part,
                    f"{model.name}, {num_sequences} x {bench.sizes.model_context}",
                    {OURS: step, **others},
                    num_bytes=step.num_bytes,
                    num_operations=step.num_operations,
                )
            reads = {"": ways["decode step"].num_bytes, ", FP8": ways["decode step, FP8"].num_bytes}
            del ways, step, others  # their pages
            narrow.scale_cache(None)
            for form, decoder in (("", wide), (", FP8", narrow)):
                measure_steps(bench, f"engine step{form}", model.name, decoder, num_sequences, reads[form])


def _decoder(spec: DecoderSpec, bench: Bench, quantization: QuantizationSpec | None) -> Decoder:
    """With random weights, quantized as a checkpoint's are while it is loaded."""
    decoder = Decoder(spec, _DTYPE, bench.device, quantization=quantization)
    matrices = decoder.matrices()
    for name, parameter in decoder.named_parameters():
        matrix = matrices.get(name)
        if isinstance(matrix, Linear) and matrix.is_float8:
            matrix.quantize_from(0.02 * bench.random(*parameter.shape, dtype=_DTYPE))
        elif not name.endswith("weight_scale"):
            torch.nn.init.normal_(parameter, std=0.02)
    return decoder


def _spec(model: ModelSize, max_positions: int) -> DecoderSpec:
    return read_spec(
        {
            "architectures": ["Qwen3ForCausalLM" if model.qk_norm else "LlamaForCausalLM"],
            "vocab_size": model.vocab_size,
            "hidden_size": model.hidden_size,
            "intermediate_size": model.intermediate_size,
            "num_hidden_layers": model.num_layers,
            "num_attention_heads": model.num_heads,
            "num_key_value_heads": model.num_kv_heads,
            "head_dim": model.head_dim,
            "rms_norm_eps": 1e-6,
            "rope_theta": 1e6,
            "max_position_embeddings": max_positions,
            "tie_word_embeddings": model.tied,
            "dtype": "bfloat16",
        }
    )


class _Step:
    """A step that gives each sequence its last token, and what it has to read and to compute at the least."""

    def __init__(self, decoder: Decoder, num_sequences: int, cache_dtype: torch.dtype, bench: Bench) -> None:
        spec, context, device = decoder.spec, bench.sizes.model_context, bench.device
        num_pages = -(-context // PAGE_SIZE)
        tables = torch.arange(num_sequences * num_pages, device=device).view(num_sequences, num_pages)
        shape = (spec.num_layers, 2, tables.numel(), PAGE_SIZE, spec.num_kv_heads, spec.head_dim)
        pages = torch.zeros(shape, dtype=cache_dtype, device=device)
        self.decoder = decoder
        self._caches = [LayerCache(layer[0], layer[1]) for layer in pages]
        one = torch.ones(spec.num_kv_heads, device=device)
        self._scales = None if cache_dtype == _DTYPE else [CacheScales(one, one)] * spec.num_layers
        self._batch = AttentionBatch((1,) * num_sequences, (context,) * num_sequences, tables, num_sequences)
        self._token_ids = torch.zeros(num_sequences, dtype=torch.int64, device=device)
        self._positions = torch.full_like(self._token_ids, context - 1)
        self._slots = tables[:, -1] * PAGE_SIZE + (context - 1) % PAGE_SIZE
        unread = () if spec.tie_word_embeddings else (decoder.embedding.weight,)
        weights = [parameter for parameter in decoder.parameters() if not any(parameter is other for other in unread)]
        num_weights = sum(parameter.numel() for parameter in weights)
        kept = 2 * spec.num_layers * spec.num_kv_heads * spec.head_dim * num_sequences * context
        self.num_bytes = sum(parameter.nbytes for parameter in weights) + kept * cache_dtype.itemsize
        self.num_operations = 2 * num_weights * num_sequences

    @torch.inference_mode()
    def __call__(self) -> torch.Tensor:
        self.decoder.scale_cache(self._scales)
        hidden = self.decoder(self._token_ids, self._positions, self._slots, self._caches, self._batch)
        return self.decoder.logits(hidden).argmax(-1)
