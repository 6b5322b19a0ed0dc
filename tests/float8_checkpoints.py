"""Small random checkpoints of float8, as others write them, and what transformers says to the weights in them."""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import AutoModelForCausalLM

from kvasir_workers.model.loader import load_spec
from kvasir_workers.model.stored_quantization import stored_quantization
from kvasir_workers.quantization.scheme import QuantizationSpec
from tests.checkpoints import make_checkpoint

SIZES: Mapping[str, int] = {"hidden_size": 256, "intermediate_size": 512, "num_key_value_heads": 4, "head_dim": 64}
"""With blocks that two ranks can share."""

BLOCK = 128
FLOAT8 = torch.float8_e4m3fn
_STATIC_INPUT_SCALE = 0.04
"""What it is too small for is cut, here and in the expected answer."""

Weights = Literal["tensor", "channel", "block"]


@dataclass(frozen=True, slots=True)
class Float8Kind:
    """What a checkpoint's config.json says, and how its weights and activations are quantized."""

    config: Mapping[str, object]
    weights: Weights
    scale_name: str = "weight_scale"
    is_static: bool = False
    scale_shape: Literal["as it is", "flat", "number"] = "as it is"


def _compressed(weights: Mapping[str, object], inputs: Mapping[str, object]) -> dict[str, object]:
    eight_bits = {"num_bits": 8, "type": "float", "symmetric": True}
    group = {
        "targets": ["Linear"],
        "weights": {**eight_bits, "dynamic": False, **weights},
        "input_activations": {**eight_bits, **inputs},
    }
    return {
        "quant_method": "compressed-tensors",
        "format": "float-quantized",
        "quantization_status": "compressed",
        "config_groups": {"group_0": group},
        "ignore": ["lm_head", "model.layers.1.mlp.down_proj"],
        "kv_cache_scheme": None,
    }


_PER_TOKEN = {"strategy": "token", "dynamic": True}
_PER_TENSOR = {"strategy": "tensor", "dynamic": False}
_PER_GROUP = {"strategy": "group", "group_size": BLOCK, "dynamic": True}

KINDS: Mapping[str, Float8Kind] = {
    "compressed, channels": Float8Kind(_compressed({"strategy": "channel"}, _PER_TOKEN), "channel"),
    "compressed, flat channels": Float8Kind(
        _compressed({"strategy": "channel"}, _PER_TOKEN), "channel", scale_shape="flat"
    ),
    "compressed, tensors": Float8Kind(_compressed({"strategy": "tensor"}, _PER_TOKEN), "tensor"),
    "compressed, static": Float8Kind(_compressed({"strategy": "tensor"}, _PER_TENSOR), "tensor", is_static=True),
    "compressed, blocks": Float8Kind(
        _compressed({"strategy": "block", "block_structure": [BLOCK, BLOCK]}, _PER_GROUP), "block"
    ),
    "fp8, blocks": Float8Kind(
        {
            "quant_method": "fp8",
            "fmt": "e4m3",
            "activation_scheme": "dynamic",
            "weight_block_size": [BLOCK, BLOCK],
            "modules_to_not_convert": ["lm_head", "model.layers.1.mlp.down_proj"],
        },
        "block",
        scale_name="weight_scale_inv",
    ),
    "fp8, tensors": Float8Kind(
        {"quant_method": "fp8", "activation_scheme": "static"}, "tensor", is_static=True, scale_shape="number"
    ),
}

_LEFT_WIDE = "model.layers.1.mlp.down_proj.weight"


def make_float8_checkpoint(directory: Path, kind: Float8Kind, family: str = "LlamaForCausalLM", **sizes: int) -> Path:
    """Write a checkpoint whose matrices of layers are float8, but for one, and return its directory."""
    make_checkpoint(directory, family, **(SIZES | sizes))
    file = directory / "model.safetensors"
    tensors: dict[str, Tensor] = {}
    for name, tensor in load_file(file).items():
        tensors |= _stored(name, tensor, kind) if is_quantized(name) else {name: tensor}
    save_file(tensors, file)
    set_quantization(directory, kind.config)
    return directory


def is_quantized(name: str) -> bool:
    """Of a tensor."""
    return "_proj.weight" in name and name != _LEFT_WIDE


def quantization_of(directory: Path) -> QuantizationSpec:
    """As we read it."""
    found = stored_quantization(directory, load_spec(directory))
    assert found is not None
    return found


def set_quantization(directory: Path, config: Mapping[str, object]) -> None:
    """Let config.json say so."""
    file = directory / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"quantization_config": config}))


def _stored(name: str, weight: Tensor, kind: Float8Kind) -> dict[str, Tensor]:
    values, scale = quantized_weight(weight, kind.weights)
    shapes: dict[str, tuple[int, ...]] = {"as it is": tuple(scale.shape), "flat": (-1,), "number": ()}
    stem = name.removesuffix("weight")
    stored = {name: values, f"{stem}{kind.scale_name}": scale.reshape(shapes[kind.scale_shape])}
    if kind.is_static:
        # q, k and v have scales of their own for the inputs that they share: the largest counts.
        factor = 1.0 if "q_proj" in name or "gate" in name or "o_proj" in name or "down" in name else 0.5
        stored[f"{stem}input_scale"] = torch.tensor(factor * _STATIC_INPUT_SCALE)
    return stored


def quantized_weight(weight: Tensor, grain: Weights) -> tuple[Tensor, Tensor]:
    """Return [O, E] in float8, and its scales: [1], [O, 1], or one for each 128 by 128."""
    match grain:
        case "tensor":
            scale = weight.abs().max().view(1) / 448
            return (weight / scale).to(FLOAT8), scale
        case "channel":
            scale = weight.abs().amax(1, keepdim=True) / 448
            return (weight / scale).to(FLOAT8), scale
        case "block":
            rows, columns = (size // BLOCK for size in weight.shape)
            scale = weight.view(rows, BLOCK, columns, BLOCK).abs().amax((1, 3)) / 448
            return (weight / _spread(scale)).to(FLOAT8), scale


def _spread(scale: Tensor) -> Tensor:
    return scale.repeat_interleave(BLOCK, 0).repeat_interleave(BLOCK, 1)


def expected_logits(directory: Path, kind: Float8Kind, token_ids: list[int]) -> Tensor:
    """What transformers' own model says, in float32, with the weights dequantized and what they multiply rounded."""
    stored = load_file(directory / "model.safetensors")
    reference = make_checkpoint(directory / "wide", _family(directory), **_sizes(directory))
    model = AutoModelForCausalLM.from_pretrained(reference, dtype=torch.float32)
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear) and is_quantized(f"{name}.weight"):
            module.weight.data = _dequantized(stored, name, kind)
            module.register_forward_pre_hook(_rounding(kind))
    with torch.inference_mode():
        logits: Tensor = model(torch.tensor([token_ids])).logits[0]
    return logits


def _family(directory: Path) -> str:
    return str(json.loads((directory / "config.json").read_text())["architectures"][0])


def _sizes(directory: Path) -> dict[str, int]:
    config = json.loads((directory / "config.json").read_text())
    return {name: int(config[name]) for name in SIZES}


def _dequantized(stored: Mapping[str, Tensor], name: str, kind: Float8Kind) -> Tensor:
    values, scale = stored[f"{name}.weight"].float(), stored[f"{name}.{kind.scale_name}"]
    if kind.weights == "block":
        return values * _spread(scale)
    return values * (scale.view(-1, 1) if scale.numel() > 1 else scale)


def _rounding(kind: Float8Kind) -> Callable[[nn.Module, tuple[Tensor, ...]], tuple[Tensor, ...]]:
    """Makes inputs what they are after they were quantized."""

    def rounded(module: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        (x,) = inputs
        if kind.is_static:
            scale = torch.tensor(_STATIC_INPUT_SCALE)
            return ((x / scale).clamp(-448, 448).to(FLOAT8).float() * scale,)
        size = BLOCK if kind.weights == "block" else x.shape[-1]
        groups = x.unflatten(-1, (-1, size))
        scales = groups.abs().amax(-1, keepdim=True) / 448
        return (((groups / scales).to(FLOAT8).float() * scales).flatten(-2),)

    return rounded


def assert_same_but_for_rounding(logits: Tensor, expected: Tensor) -> None:
    """Where a sum differs in its last bit a number may become the next float8: after some token, not from the first."""
    assert expected.std() > 1
    assert (logits - expected).abs().median() < 1e-4
    assert torch.cosine_similarity(logits, expected, dim=-1).min() > 0.99
