"""From a checkpoint to a decoder with weights in it."""

from collections.abc import Iterator, Mapping
from itertools import groupby
from pathlib import Path

import torch

from kvasir_workers.engine_directory.weights import open_engine_directory
from kvasir_workers.model.checkpoint import StoredTensor, open_tensors, read_config, read_stored_tensors
from kvasir_workers.model.decoder import Decoder
from kvasir_workers.model.filling import Filling, Parts, part_of
from kvasir_workers.model.spec import DecoderSpec, read_spec
from kvasir_workers.model.stored_quantization import stored_places
from kvasir_workers.model.tensor_check import check_tensors
from kvasir_workers.model.weight_map import is_ignored
from kvasir_workers.parallel.mesh import LEADER
from kvasir_workers.quantization.scheme import QuantizationSpec


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

    Weights are read one tensor at a time: on a CPU from a memory map, for a GPU through staging. With a quantization,
    or if it `packs`, each matrix gets its last form as soon as it is whole: of what was read, and of plain copies,
    there is never more than about a layer.
    Everything is checked against the files' headers before memory is taken. Raises CheckpointError.
    """
    spec = load_spec(path)
    if (built := open_engine_directory(path)) is not None:
        decoder = Decoder(spec, dtype, device, quantization=quantization)
        built.fill(decoder, LEADER, quantization, packs=packs)
        return decoder
    stored = checked_tensors(path, spec, quantization)
    places = stored_places(spec, quantization)
    parts = {name: [part_of(place)] for name, place in places.items()}
    decoder = Decoder(spec, dtype, device, quantization=quantization)
    read_parts(Filling(decoder, quantization, parts, packs=packs), stored, parts, device)
    return decoder


def read_parts(filling: Filling, stored: Mapping[str, StoredTensor], parts: Parts, device: torch.device) -> None:
    """Fill in what is wanted of the stored tensors, file by file."""
    for file, names in _by_file(stored):
        if wanted := {name: parts[name] for name in names if parts[name]}:
            with open_tensors(file, device) as tensors:
                filling.read(tensors, wanted)


def weight_bytes(path: Path, dtype: torch.dtype, quantization: QuantizationSpec | None = None) -> int:
    """Return the bytes that the weights of the checkpoint at `path` take in `dtype`; raises CheckpointError."""
    if (built := open_engine_directory(path)) is not None:
        return sum(built.weight_bytes(rank) for rank in range(len(built.manifest.ranks)))
    spec = load_spec(path)
    checked_tensors(path, spec, quantization)
    decoder = Decoder(spec, dtype, torch.device("meta"), quantization=quantization)
    num_bytes = sum(parameter.nbytes for parameter in decoder.parameters())
    if quantization is None:
        return num_bytes
    return num_bytes - sum(matrix.num_saved_bytes(quantization) for matrix in decoder.matrices().values())


def checked_tensors(
    path: Path, spec: DecoderSpec, quantization: QuantizationSpec | None = None
) -> dict[str, StoredTensor]:
    """Return the checkpoint's tensors by name; raises CheckpointError unless they are those of the weight map."""
    stored = _wanted_tensors(path, spec)
    skeleton = Decoder(spec, torch.float32, torch.device("meta"), quantization=quantization)
    check_tensors(stored, stored_places(spec, quantization), skeleton, path)
    return stored


def _wanted_tensors(path: Path, spec: DecoderSpec) -> dict[str, StoredTensor]:
    return {name: tensor for name, tensor in read_stored_tensors(path).items() if not is_ignored(name, spec)}


def _by_file(stored: Mapping[str, StoredTensor]) -> Iterator[tuple[Path, list[str]]]:
    by_file = sorted(stored, key=lambda name: stored[name].file)
    for file, names in groupby(by_file, key=lambda name: stored[name].file):
        yield file, list(names)
