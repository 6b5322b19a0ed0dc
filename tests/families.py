"""Every way in which families depart from each other, and prompts to tell them apart."""

import torch

ROPES: dict[str, dict[str, object]] = {
    "linear": {"rope_type": "linear", "factor": 4.0, "rope_theta": 10000.0},
    "llama3": {
        "rope_type": "llama3",
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 32,
        "rope_theta": 500.0,
    },
    "yarn": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 128, "rope_theta": 1e6},
}

CASES: dict[str, tuple[str, dict[str, object]]] = {
    "llama": ("LlamaForCausalLM", {}),
    "llama-tied": ("LlamaForCausalLM", {"tie_word_embeddings": True}),
    "llama-biases": ("LlamaForCausalLM", {"attention_bias": True, "mlp_bias": True}),
    "llama-wide-heads": ("LlamaForCausalLM", {"head_dim": 24, "num_key_value_heads": 1}),
    "llama-linear": ("LlamaForCausalLM", {"rope_parameters": ROPES["linear"]}),
    "llama-llama3": ("LlamaForCausalLM", {"rope_parameters": ROPES["llama3"]}),
    "llama-sharded": ("LlamaForCausalLM", {"max_shard_size": "100KB"}),
    "mistral": ("MistralForCausalLM", {"sliding_window": None}),
    "mistral-window": ("MistralForCausalLM", {"sliding_window": 7}),
    "qwen2": ("Qwen2ForCausalLM", {}),
    "qwen2-tied-yarn": ("Qwen2ForCausalLM", {"tie_word_embeddings": True, "rope_parameters": ROPES["yarn"]}),
    "qwen2-window": (
        "Qwen2ForCausalLM",
        {"use_sliding_window": True, "sliding_window": 6, "max_window_layers": 1},
    ),
    "qwen3": ("Qwen3ForCausalLM", {"tie_word_embeddings": True}),
    "qwen3-bias": ("Qwen3ForCausalLM", {"attention_bias": True}),
    "qwen3-window": (
        "Qwen3ForCausalLM",
        {
            "use_sliding_window": True,
            "sliding_window": 5,
            "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
        },
    ),
}

PROMPTS = [torch.randint(0, 256, (length,), generator=torch.Generator().manual_seed(length)) for length in (29, 18)]
