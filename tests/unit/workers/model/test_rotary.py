"""Rotary tables against those of transformers, for every kind."""

import pytest
import torch
from transformers import LlamaConfig
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from kvasir_workers.model.config_fields import ConfigFields
from kvasir_workers.model.rotary import RotaryTable
from kvasir_workers.model.rotary_spec import read_rotary

YARN = {"rope_type": "yarn", "rope_theta": 1e6, "factor": 4.0, "original_max_position_embeddings": 128}
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 500000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 128,
}
KINDS: dict[str, dict[str, object]] = {
    "default": {"rope_type": "default", "rope_theta": 10000.0},
    "default-whole-theta": {"rope_type": "default", "rope_theta": 1000000},
    "linear": {"rope_type": "linear", "rope_theta": 10000.0, "factor": 2.5},
    "llama3": LLAMA3,
    "yarn": YARN,
    "yarn-untruncated": YARN | {"truncate": False, "beta_fast": 16, "beta_slow": 2},
    "yarn-attention-factor": YARN | {"attention_factor": 0.7},
    "yarn-mscale": YARN | {"mscale": 0.8, "mscale_all_dim": 0.5},
    "yarn-equal-bounds": YARN | {"original_max_position_embeddings": 4, "factor": 128.0},
}


@pytest.mark.parametrize("parameters", KINDS.values(), ids=KINDS.keys())
@pytest.mark.parametrize("head_dim", [10, 64, 128])
def test_table_is_that_of_transformers(parameters: dict[str, object], head_dim: int) -> None:
    config = LlamaConfig(head_dim=head_dim, max_position_embeddings=512, rope_parameters=dict(parameters))
    positions = torch.tensor([0, 1, 5, 511, 77])
    cos, sin = LlamaRotaryEmbedding(config)(torch.zeros(1), positions[None])
    spec = read_rotary(ConfigFields({"max_position_embeddings": 512, "rope_parameters": parameters}, "config.json"))
    ours = RotaryTable(spec, head_dim, 512, torch.device("cpu")).at(positions)
    half = head_dim // 2  # theirs have every angle twice
    torch.testing.assert_close(ours, (cos[0, :, :half], sin[0, :, :half]), atol=1e-6, rtol=0)
