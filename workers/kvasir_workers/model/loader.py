"""From a checkpoint to a decoder with weights in it."""

import math
from collections import Counter
from collections.abc import Mapping
from itertools import groupby
from pathlib import Path

import torch
from torch import Tensor

from kvasir_protocol.errors import CheckpointError
from kvasir_workers.model.checkpoint import StoredTensor, open_tensors, read_config, read_stored_tensors
from kvasir_workers.model.decoder import Decoder
from kvasir_workers.model.linear import Matrix
from kvasir_workers.model.spec import DecoderSpec, read_spec
from kvasir_workers.model.weight_map import Place, is_ignored, weight_map
from kvasir_workers.quantization.scheme import QuantizationSpec
from kvasir_workers.reclaim import give_back_freed, give_back_read

_FLOAT_DTYPES = ("F64", "F32", "F16", "BF16")


def load_spec(path: Path) -> DecoderSpec:
    """Return the spec of the checkpoint directory at `path`; raises CheckpointError."""
    return read_spec(read_config(path), str(path / "config.json"))


def load_decoder(
    path: Path,
    dtype: torch.dtype,
    device: torch.device,
    quantization: QuantizationSpec | None = None,
    *,
    packs: bool = False,
) -> Decoder:
    """Return the decoder of the checkpoint directory at `path`, its weights in `dtype` on `device`.

    Weights are copied from a memory map one tensor at a time. With a quantization, or if it `packs`, each matrix gets
    its last form as soon as it is whole: of what was read, and of plain copies, there is never more than about a layer.
    Everything is checked against the files' headers before memory is taken. Raises CheckpointError.
    """
    spec = load_spec(path)
    stored = checked_tensors(path, spec)
    places = weight_map(spec)
    decoder = Decoder(spec, dtype, device)
    _fill(decoder, stored, places, decoder.matrices() if packs or quantization is not None else {}, quantization)
    return decoder


def num_parameters(path: Path) -> int:
    """Return how many weights the checkpoint at `path` puts in memory, from headers alone; raises CheckpointError."""
    return sum(math.prod(tensor.shape) for tensor in _wanted_tensors(path, load_spec(path)).values())


def weight_bytes(path: Path, dtype: torch.dtype, quantization: QuantizationSpec | None = None) -> int:
    """Return the bytes that the weights of the checkpoint at `path` take in `dtype`; raises CheckpointError."""
    num_bytes = num_parameters(path) * dtype.itemsize
    if quantization is None:
        return num_bytes
    matrices = Decoder(load_spec(path), dtype, torch.device("meta")).matrices().values()
    return num_bytes - sum(matrix.num_saved_bytes(quantization) for matrix in matrices)


def checked_tensors(path: Path, spec: DecoderSpec) -> dict[str, StoredTensor]:
    """Return the checkpoint's tensors by name; raises CheckpointError unless they are those of the weight map."""
    stored = _wanted_tensors(path, spec)
    _check_shapes(stored, weight_map(spec), Decoder(spec, torch.float32, torch.device("meta")), path)
    return stored


def _wanted_tensors(path: Path, spec: DecoderSpec) -> dict[str, StoredTensor]:
    return {name: tensor for name, tensor in read_stored_tensors(path).items() if not is_ignored(name, spec)}


def _check_shapes(
    stored: Mapping[str, StoredTensor], places: Mapping[str, Place], skeleton: Decoder, path: Path
) -> None:
    """Raise CheckpointError unless the stored tensors are exactly those of the weight map, each of its shape."""
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
        expected = (places[name].num_rows, *parameters[places[name].parameter].shape[1:])
        if tensor.shape != expected:
            raise CheckpointError(
                f"{tensor.file}: {name} has shape {list(tensor.shape)} where config.json calls for {list(expected)}; "
                "take the config.json that belongs to these weights"
            )
        if tensor.dtype not in _FLOAT_DTYPES:
            raise CheckpointError(
                f"{tensor.file}: {name} is stored as {tensor.dtype}; quantized weights are not supported yet, "
                f"only {', '.join(_FLOAT_DTYPES)}"
            )


def _fill(
    decoder: Decoder,
    stored: Mapping[str, StoredTensor],
    places: Mapping[str, Place],
    matrices: Mapping[str, Matrix],
    quantization: QuantizationSpec | None,
) -> None:
    """Copy every stored tensor to its place, file by file, and pack the matrices among them that have become whole."""
    parameters: dict[str, Tensor] = dict(decoder.named_parameters())
    num_missing = Counter(place.parameter for place in places.values())
    by_file = sorted(stored, key=lambda name: stored[name].file)
    for file, names in groupby(by_file, key=lambda name: stored[name].file):
        with open_tensors(file) as tensors:
            for name in names:
                place = places[name]
                rows = parameters[place.parameter].narrow(0, place.start, place.num_rows)
                content = tensors.get_tensor(name)
                rows.copy_(content)
                give_back_read(content)
                num_missing[place.parameter] -= 1
                if not num_missing[place.parameter]:
                    del parameters[place.parameter], rows
                    if place.parameter in matrices:
                        matrices[place.parameter].pack(quantization)
                        give_back_freed()


def _listed(names: list[str]) -> str:
    """Return the first few of the names, and how many more there are."""
    shown = ", ".join(names[:3])
    return shown if len(names) <= 3 else f"{shown} and {len(names) - 3} more"
