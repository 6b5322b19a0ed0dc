"""A decode step of whole models with random weights, as one captured graph: all but the scheduler and the sampler."""

import torch

from bench.gpu.bench import Bench
from bench.gpu.figures import OURS
from bench.gpu.sizes import ModelSize
from kvasir_kernels.paged_cache import AttentionBatch, LayerCache
from kvasir_workers.model.decoder import Decoder
from kvasir_workers.model.spec import DecoderSpec, read_spec

_PAGE_SIZE = 16
_DTYPE = torch.bfloat16


def measure_models(bench: Bench) -> None:
    for model in bench.sizes.models:
        spec = _spec(model, bench.sizes.model_context + 2)
        decoder = Decoder(spec, _DTYPE, bench.device)
        for parameter in decoder.parameters():
            torch.nn.init.normal_(parameter, std=0.02)
        for num_sequences in bench.sizes.model_batches:
            _measure_step(bench, model.name, decoder, num_sequences)
        del decoder


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


@torch.inference_mode()
def _measure_step(bench: Bench, name: str, decoder: Decoder, num_sequences: int) -> None:
    spec, context = decoder.spec, bench.sizes.model_context
    num_pages = -(-context // _PAGE_SIZE)
    tables = torch.arange(num_sequences * num_pages, device=bench.device).view(num_sequences, num_pages)
    shape = (spec.num_layers, 2, tables.numel(), _PAGE_SIZE, spec.num_kv_heads, spec.head_dim)
    pages = torch.zeros(shape, dtype=_DTYPE, device=bench.device)
    caches = [LayerCache(layer[0], layer[1]) for layer in pages]
    batch = AttentionBatch((1,) * num_sequences, (context,) * num_sequences, tables, num_sequences)
    token_ids = torch.zeros(num_sequences, dtype=torch.int64, device=bench.device)
    positions = torch.full_like(token_ids, context - 1)
    slots = tables[:, -1] * _PAGE_SIZE + (context - 1) % _PAGE_SIZE

    def step() -> torch.Tensor:
        hidden = decoder(token_ids, positions, slots, caches, batch)
        return decoder.logits(hidden).argmax(-1)

    unread = 0 if spec.tie_word_embeddings else decoder.embedding.weight.numel()
    num_weights = sum(parameter.numel() for parameter in decoder.parameters()) - unread
    kept = 2 * spec.num_layers * spec.num_kv_heads * spec.head_dim * num_sequences * context
    bench.measure(
        "decode step",
        f"{name}, {num_sequences} x {context}",
        {OURS: step},
        num_bytes=2 * (num_weights + kept),
        num_operations=2 * num_weights * num_sequences,
    )
