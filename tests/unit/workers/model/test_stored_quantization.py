"""Checkpoints of float8 as others write them: what they say is what their weights, dequantized, say."""

import json
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from kvasir_kernels.dispatch import Grain
from kvasir_kernels.native.choice import without_native_kernels
from kvasir_protocol.config import ModelConfig
from kvasir_protocol.errors import CheckpointError, ConfigError
from kvasir_workers.model.decoder import Decoder
from kvasir_workers.model.loader import load_decoder, load_spec, weight_bytes
from kvasir_workers.model.stored_quantization import stored_quantization
from kvasir_workers.quantization.scheme import Float8Format
from kvasir_workers.resolve import resolve_quantization
from tests.checkpoints import make_checkpoint
from tests.float8_checkpoints import (
    KINDS,
    Float8Kind,
    assert_same_but_for_rounding,
    expected_logits,
    make_float8_checkpoint,
    quantization_of,
    set_quantization,
)
from tests.unit.workers.model.paged_prompts import PagedPrompts

CPU = torch.device("cpu")
TOKENS = [5, 9, 200, 17, 33, 8, 99, 100, 101, 4, 250, 77]
UNQUANTIZED = "layers.1.feed_forward.down.weight"


def load(path: Path) -> Decoder:
    return load_decoder(path, torch.float32, CPU, quantization_of(path))


@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
def test_logits_are_those_of_the_dequantized_weights(kind: Float8Kind, tmp_path: Path) -> None:
    path = make_float8_checkpoint(tmp_path, kind)
    with without_native_kernels():  # whose sums differ in their last bits
        ours = PagedPrompts(load(path), 1).step({0: TOKENS})[0]
    assert_same_but_for_rounding(ours, expected_logits(path, kind, TOKENS))


@pytest.mark.parametrize("family", ["Qwen2ForCausalLM", "Qwen3ForCausalLM", "MistralForCausalLM"])
def test_families_with_biases_and_head_norms_can_be_float8(family: str, tmp_path: Path) -> None:
    kind = KINDS["fp8, blocks"]
    path = make_float8_checkpoint(tmp_path, kind, family)
    with without_native_kernels():  # whose sums differ in their last bits
        ours = PagedPrompts(load(path), 1).step({0: TOKENS})[0]
    assert_same_but_for_rounding(ours, expected_logits(path, kind, TOKENS))


def test_what_the_files_hold_wide_stays_wide(tmp_path: Path) -> None:
    path = make_float8_checkpoint(tmp_path, KINDS["compressed, channels"])
    assert quantization_of(path).unquantized == (UNQUANTIZED,)
    dtypes = {name: parameter.dtype for name, parameter in load(path).named_parameters()}
    assert dtypes[UNQUANTIZED] == dtypes["lm_head.weight"] == torch.float32
    assert dtypes["layers.0.feed_forward.down.weight"] == torch.float8_e4m3fn


def test_scales_of_fused_tensors_stay_apart(tmp_path: Path) -> None:
    path = make_float8_checkpoint(tmp_path, KINDS["compressed, tensors"])
    stored = load_file(path / "model.safetensors")
    scale = dict(load(path).named_parameters())["layers.0.attention.qkv.weight_scale"]
    names = [f"model.layers.0.self_attn.{part}_proj.weight_scale" for part in "qkv"]
    assert len({float(stored[name]) for name in names}) == 3
    assert torch.equal(scale, torch.cat([stored[name].expand(256, 1) for name in names]))


def test_inputs_of_fused_tensors_get_the_largest_scale(tmp_path: Path) -> None:
    decoder = load(make_float8_checkpoint(tmp_path, KINDS["compressed, static"]))
    assert dict(decoder.named_parameters())["layers.0.attention.qkv.input_scale"].item() == pytest.approx(0.04)


@pytest.mark.parametrize("name", ["input_scale", "weight_scale"])
def test_a_single_scale_may_have_any_number_of_dimensions(name: str, tmp_path: Path) -> None:
    path = make_float8_checkpoint(tmp_path, KINDS["compressed, static"])
    expected = dict(load(path).named_parameters())[f"layers.0.attention.output.{name}"]
    tensor = f"model.layers.0.self_attn.o_proj.{name}"
    _edit(path, tensor, load_file(path / "model.safetensors")[tensor].reshape(1, 1, 1))
    assert torch.equal(dict(load(path).named_parameters())[f"layers.0.attention.output.{name}"], expected)


@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
def test_bytes_are_known_before_loading(kind: Float8Kind, tmp_path: Path) -> None:
    path = make_float8_checkpoint(tmp_path, kind)
    planned = weight_bytes(path, torch.float32, quantization_of(path))
    assert planned == sum(parameter.nbytes for parameter in load(path).parameters())


COMPRESSED = KINDS["compressed, channels"].config
WEIGHTS = {"num_bits": 8, "type": "float", "strategy": "channel"}
UNKNOWN: dict[str, tuple[Mapping[str, object], str]] = {
    "method": ({"quant_method": "awq", "bits": 4}, 'quant_method "awq"'),
    "no method": ({"bits": 4}, 'quant_method "none"'),
    "format": ({**COMPRESSED, "format": "pack-quantized"}, "\"format\" 'pack-quantized'"),
    "bits": (
        {**COMPRESSED, "config_groups": {"group_0": {"weights": WEIGHTS | {"num_bits": 4}}}},
        '"num_bits" 4',
    ),
    "integers": ({**COMPRESSED, "config_groups": {"group_0": {"weights": WEIGHTS | {"type": "int"}}}}, "'int'"),
    "wide activations": ({**COMPRESSED, "config_groups": {"group_0": {"weights": WEIGHTS}}}, '"type" None'),
    "no groups": ({**COMPRESSED, "config_groups": {}}, '"config_groups"'),
    "block size": ({"quant_method": "fp8", "weight_block_size": [64, 64]}, '"weight_block_size" [64, 64]'),
    "kind of float8": ({"quant_method": "fp8", "fmt": "e5m2"}, "\"fmt\" 'e5m2'"),
    "activations": ({"quant_method": "fp8", "activation_scheme": "none"}, '"activation_scheme"'),
}


@pytest.mark.parametrize(("config", "told"), UNKNOWN.values(), ids=UNKNOWN)
def test_unknown_ways_are_named_beside_those_that_are_known(
    config: Mapping[str, object], told: str, tmp_path: Path
) -> None:
    path = make_checkpoint(tmp_path, "LlamaForCausalLM")
    set_quantization(path, config)
    with pytest.raises(CheckpointError) as caught:
        quantization_of(path)
    assert told in str(caught.value)
    assert "supported are compressed-tensors" in str(caught.value)


def test_checkpoint_without_quantization_has_none(tmp_path: Path) -> None:
    path = make_checkpoint(tmp_path, "LlamaForCausalLM")
    assert stored_quantization(path, load_spec(path)) is None


def test_matrix_of_which_a_part_is_wide_is_refused(tmp_path: Path) -> None:
    path = make_float8_checkpoint(tmp_path, KINDS["compressed, channels"])
    _edit(path, "model.layers.0.self_attn.k_proj.weight", torch.zeros(256, 256))
    with pytest.raises(CheckpointError, match=r"\(layers.0.attention.qkv.weight\) some are float8 and some are not"):
        quantization_of(path)


def test_scale_of_a_wrong_shape_is_refused(tmp_path: Path) -> None:
    path = make_float8_checkpoint(tmp_path, KINDS["fp8, blocks"])
    name = "model.layers.0.self_attn.k_proj.weight_scale_inv"
    _edit(path, name, torch.zeros(2, 3))
    with pytest.raises(CheckpointError, match=rf"{name} has shape \[2, 3\] where config.json calls for \[2, 2\]"):
        load(path)


def test_float8_head_is_refused(tmp_path: Path) -> None:
    path = make_float8_checkpoint(tmp_path, KINDS["compressed, channels"])
    _edit(path, "lm_head.weight", torch.zeros(256, 256).to(torch.float8_e4m3fn))
    with pytest.raises(CheckpointError, match=r"lm_head.weight is stored as F8_E4M3"):
        load(path)


def test_blocks_that_fused_tensors_would_cut_are_refused(tmp_path: Path) -> None:
    path = make_float8_checkpoint(tmp_path, KINDS["fp8, blocks"])
    config = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps(config | {"num_attention_heads": 3, "num_key_value_heads": 3}))
    for layer in range(3):
        for part in "qkv":
            stem = f"model.layers.{layer}.self_attn.{part}_proj"
            _edit(path, f"{stem}.weight", torch.zeros(192, 256).to(torch.float8_e4m3fn))
        _edit(path, f"model.layers.{layer}.self_attn.o_proj.weight", torch.zeros(256, 192).to(torch.float8_e4m3fn))
    with pytest.raises(CheckpointError, match="would be cut at 192, but its scales are for blocks of 128"):
        load(path)


def test_other_quantization_beside_that_of_the_checkpoint_is_refused(tmp_path: Path) -> None:
    path = make_float8_checkpoint(tmp_path, KINDS["fp8, blocks"])
    model = ModelConfig(path=str(path), served_name="m", quantization="fp8")
    with pytest.raises(ConfigError, match=r"quantized already \(fp8-block, as stored\)"):
        resolve_quantization(model, load_spec(path), CPU)


def test_quantization_of_the_checkpoint_needs_no_flag(tmp_path: Path) -> None:
    path = make_float8_checkpoint(tmp_path, KINDS["fp8, blocks"])
    found = resolve_quantization(ModelConfig(path=str(path), served_name="m"), load_spec(path), CPU)
    assert found is not None
    assert (found.layers, found.head) == (Float8Format(Grain.BLOCK), None)


def _edit(path: Path, name: str, tensor: torch.Tensor) -> None:
    tensors = load_file(path / "model.safetensors")
    save_file(tensors | {name: tensor}, path / "model.safetensors")
