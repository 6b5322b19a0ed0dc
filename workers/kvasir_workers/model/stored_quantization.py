"""Checkpoints whose matrices are float8 already: which there are, and what lies beside the matrices in them.

    compressed-tensors, float-quantized    X.weight, X.weight_scale: one number, one per row, or one per 128 x 128
    fp8 with weight_block_size             X.weight, X.weight_scale_inv: one per 128 x 128
    fp8 without                            X.weight, X.weight_scale: one number
    each, with static activations          X.input_scale: one number

Which matrices are not quantized, the files' headers say: lists of names in config.json are patterns of three kinds, and
say the same.
"""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from kvasir_kernels.dispatch import Grain
from kvasir_kernels.float8.reference import BLOCK
from kvasir_protocol.errors import CheckpointError
from kvasir_workers.engine_directory.manifest import read_manifest
from kvasir_workers.model.checkpoint import StoredTensor, read_config, read_stored_tensors
from kvasir_workers.model.config_fields import ConfigFields
from kvasir_workers.model.spec import DecoderSpec
from kvasir_workers.model.weight_map import Content, Place, weight_map
from kvasir_workers.quantization.scheme import Float8Format, QuantizationSpec, ScaleName

FLOAT8_DTYPE = "F8_E4M3"
"""As safetensors names it."""

_SUPPORTED = (
    "supported are compressed-tensors of format float-quantized (8-bit floats; weights with a scale per tensor, "
    "channel or 128 x 128 block; activations quantized per token, per 128, or with a static scale per tensor) and fp8 "
    "with weight_block_size [128, 128] or without; take one of those or the unquantized model"
)

_SQUARE = [BLOCK, BLOCK]


def stored_quantization(directory: Path, spec: DecoderSpec) -> QuantizationSpec | None:
    """How the checkpoint in a directory is quantized; None if it isn't. Raises CheckpointError for unknown ways."""
    fields = ConfigFields(read_config(directory), str(directory / "config.json"))
    if not fields.has("quantization_config"):
        return None
    found = _read(fields.section("quantization_config"))
    manifest = read_manifest(directory)
    wide = _wide_matrices(read_stored_tensors(directory), spec) if manifest is None else manifest.unquantized
    return replace(found, unquantized=wide)


def stored_places(spec: DecoderSpec, quantization: QuantizationSpec | None) -> dict[str, Place]:
    """The weight map of a checkpoint that is, perhaps, quantized: matrices together with their scales."""
    places = weight_map(spec)
    if quantization is None or quantization.stored_scales is None:
        return places
    stored: dict[str, Place] = {}
    for name, place in places.items():
        if place.content == "matrix" and place.parameter not in quantization.unquantized:
            stored |= _float8_places(name, place, quantization)
        else:
            stored[name] = place
    return stored


def _float8_places(name: str, place: Place, quantization: QuantizationSpec) -> dict[str, Place]:
    form, scale_name = quantization.float8, quantization.stored_scales
    assert form is not None and scale_name is not None, f"{quantization} is not a checkpoint's"
    stem, parameter = name.removesuffix("weight"), place.parameter.removesuffix("weight")
    scales: Content = "row scales" if form.grain is Grain.ROW else "block scales"
    places = {
        name: replace(place, content="float8"),
        f"{stem}{scale_name}": replace(place, parameter=f"{parameter}weight_scale", content=scales),
    }
    if form.has_input_scale:
        scale = replace(place, parameter=f"{parameter}input_scale", content="input scale")
        places[f"{stem}input_scale"] = scale
    return places


def _wide_matrices(stored: Mapping[str, StoredTensor], spec: DecoderSpec) -> tuple[str, ...]:
    """The decoder's matrices whose tensors are not float8. Raises CheckpointError if only some of one's are."""
    is_float8: dict[str, set[bool]] = {}
    for name, place in weight_map(spec).items():
        if place.content == "matrix" and name in stored:
            is_float8.setdefault(place.parameter, set()).add(stored[name].dtype == FLOAT8_DTYPE)
    for parameter, answers in is_float8.items():
        if len(answers) > 1:
            raise CheckpointError(
                f"of the tensors that are one matrix here ({parameter}) some are float8 and some are not, which is not "
                "supported; take a checkpoint that treats q, k and v, and gate and up, alike"
            )
    return tuple(parameter for parameter, answers in is_float8.items() if answers == {False})


def _read(fields: ConfigFields) -> QuantizationSpec:
    match method := fields.text("quant_method", "none"):
        case "compressed-tensors":
            return _read_compressed(fields)
        case "fp8":
            return _read_fp8(fields)
        case _:
            raise CheckpointError(f'{fields.source}: quant_method "{method}" is not supported; {_SUPPORTED}')


def _read_fp8(fields: ConfigFields) -> QuantizationSpec:
    has_blocks = fields.has("weight_block_size")
    if has_blocks and fields.values["weight_block_size"] != _SQUARE:
        raise _unsupported(fields, "weight_block_size")
    if fields.has("fmt") and fields.values["fmt"] not in ("e4m3", "float8_e4m3fn"):
        raise _unsupported(fields, "fmt")
    activations = fields.text("activation_scheme", "dynamic")
    if activations not in ("dynamic", "static") or (activations == "static" and has_blocks):
        raise _unsupported(fields, "activation_scheme")
    form = Float8Format(Grain.BLOCK if has_blocks else Grain.ROW, has_input_scale=activations == "static")
    return _spec(form, "weight_scale_inv" if has_blocks else "weight_scale")


def _read_compressed(fields: ConfigFields) -> QuantizationSpec:
    if fields.text("format", "none") != "float-quantized":
        raise _unsupported(fields, "format")
    groups = [fields.section("config_groups").section(name) for name in fields.section("config_groups").values]
    forms = {_read_group(group) for group in groups}
    if len(forms) != 1:
        raise _unsupported(fields, "config_groups")
    return _spec(forms.pop(), "weight_scale")


def _read_group(group: ConfigFields) -> Float8Format:
    """Of the matrices that a group of settings is for."""
    weights, inputs = group.section("weights"), group.section("input_activations")
    for side in (weights, inputs):
        if (side.values.get("type"), side.values.get("num_bits")) != ("float", 8):
            raise _unsupported(side, "type" if side.values.get("type") != "float" else "num_bits")
    is_static = not inputs.flag("dynamic", default=False)
    match weights.text("strategy"), inputs.text("strategy"):
        case (("tensor" | "channel"), "token") if not is_static:
            return Float8Format(Grain.ROW)
        case (("tensor" | "channel"), "tensor"):
            # What is to have one scale found for a whole step gets one for each token: never a larger one.
            return Float8Format(Grain.ROW, has_input_scale=is_static)
        case "block", "group" if not is_static:
            if weights.values.get("block_structure") != _SQUARE:
                raise _unsupported(weights, "block_structure")
            if inputs.values.get("group_size") != BLOCK:
                raise _unsupported(inputs, "group_size")
            return Float8Format(Grain.BLOCK)
        case _:
            raise _unsupported(inputs, "strategy")


def _spec(form: Float8Format, scales: ScaleName) -> QuantizationSpec:
    name = "fp8" if form.grain is Grain.ROW else "fp8-block"
    return QuantizationSpec(name=f"{name}, as stored", layers=form, head=None, stored_scales=scales)


def _unsupported(fields: ConfigFields, key: str) -> CheckpointError:
    return CheckpointError(f'{fields.source}: "{key}" {fields.values.get(key)!r} is not supported; {_SUPPORTED}')
