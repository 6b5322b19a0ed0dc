"""Whether a checkpoint's tensors are those that its config.json calls for, from headers alone."""

from collections.abc import Mapping
from math import prod
from pathlib import Path

from torch import Tensor

from kvasir_kernels.float8.reference import BLOCK
from kvasir_protocol.errors import CheckpointError
from kvasir_workers.model.checkpoint import StoredTensor
from kvasir_workers.model.decoder import Decoder
from kvasir_workers.model.stored_quantization import FLOAT8_DTYPE
from kvasir_workers.model.weight_map import Place

_FLOAT_DTYPES = ("F64", "F32", "F16", "BF16")


def check_tensors(
    stored: Mapping[str, StoredTensor], places: Mapping[str, Place], skeleton: Decoder, path: Path
) -> None:
    """Raise CheckpointError unless the stored tensors are exactly those of the places, each of its shape and kind."""
    if missing := sorted(places.keys() - stored.keys()):
        raise CheckpointError(
            f"{path} lacks {_listed(missing)}, which its config.json calls for; download the checkpoint again"
        )
    if unknown := sorted(stored.keys() - places.keys()):
        raise CheckpointError(
            f"{stored[unknown[0]].file} holds {_listed(unknown)}, for which a {skeleton.spec.architecture} as "
            "config.json describes it has no place; take the config.json that belongs to these weights"
        )
    parameters = dict(skeleton.named_parameters())
    for name, tensor in stored.items():
        _check_shape(name, tensor, places[name], parameters[places[name].parameter])
        _check_dtype(name, tensor, places[name])


def _check_shape(name: str, tensor: StoredTensor, place: Place, parameter: Tensor) -> None:
    expected = _shape(place, parameter)
    is_right = tensor.shape == expected
    match place.content:
        case "row scales":
            is_right |= tensor.shape == expected[:1] or prod(tensor.shape) == 1
        case "input scale":
            is_right |= prod(tensor.shape) == 1
    if not is_right:
        raise CheckpointError(
            f"{tensor.file}: {name} has shape {list(tensor.shape)} where config.json calls for {list(expected)}; "
            "take the config.json that belongs to these weights"
        )


def _shape(place: Place, parameter: Tensor) -> tuple[int, ...]:
    match place.content:
        case "input scale":
            return (1,)
        case "block scales":
            return -(-place.num_rows // BLOCK), parameter.shape[1]
        case _:
            return (place.num_rows, *parameter.shape[1:])


def _check_dtype(name: str, tensor: StoredTensor, place: Place) -> None:
    dtypes = (FLOAT8_DTYPE,) if place.content == "float8" else _FLOAT_DTYPES
    if tensor.dtype not in dtypes:
        raise CheckpointError(
            f"{tensor.file}: {name} is stored as {tensor.dtype}, where only {', '.join(dtypes)} can be read; of "
            "quantized weights those of layers are supported, and only in ways that config.json tells of"
        )


def _listed(names: list[str]) -> str:
    """Return the first few of the names, and how many more there are."""
    shown = ", ".join(names[:3])
    return shown if len(names) <= 3 else f"{shown} and {len(names) - 3} more"
