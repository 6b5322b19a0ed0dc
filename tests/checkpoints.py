"""Small random checkpoints, written by transformers, for tests that compare ours with theirs."""

from pathlib import Path

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

# transformers' model_type of each family.
MODEL_TYPES = {
    "LlamaForCausalLM": "llama",
    "Qwen2ForCausalLM": "qwen2",
    "Qwen3ForCausalLM": "qwen3",
    "MistralForCausalLM": "mistral",
}


def make_checkpoint(
    directory: Path, family: str, *, seed: int = 0, max_shard_size: str = "1GB", **overrides: object
) -> Path:
    """Write a seeded float32 checkpoint of `family` (an architecture name) to `directory` and return it.

    Vocabulary 256, hidden 64, 3 layers, 4 query and 2 key heads of 16, 512 positions; `overrides` are config keys.
    Weights are scaled so that layers matter: the logits spread over several units and greedy text does not repeat.
    """
    sizes: dict[str, object] = {
        "vocab_size": 256,
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 16,
        "max_position_embeddings": 512,
        "eos_token_id": 2,
        "bos_token_id": 1,
        "tie_word_embeddings": False,
    }
    config = AutoConfig.for_model(MODEL_TYPES[family], **(sizes | overrides))
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)  # type: ignore[no-untyped-call]
    _randomise(model, seed)
    model.save_pretrained(directory, max_shard_size=max_shard_size)
    return directory


def _randomise(model: PreTrainedModel, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            if name.endswith("norm.weight"):
                parameter.copy_(1 + 0.1 * noise)
            elif name.endswith("bias"):
                parameter.copy_(0.2 * noise)
            elif "embed_tokens" in name:
                parameter.copy_(0.3 * noise)
            else:
                parameter.copy_(2 * noise * parameter.shape[-1] ** -0.5)
