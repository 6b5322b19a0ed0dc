"""Names for weights, from headers and a few bytes of each tensor: to read all would take as long as to load them."""

import hashlib
import json
import os
from pathlib import Path

from kvasir_protocol.errors import CheckpointError
from kvasir_workers.engine_directory.manifest import read_manifest
from kvasir_workers.quantization.scheme import QuantizationSpec

_SAMPLE_BYTES = 64
"""Of each tensor: training changes nearly all weights of a tensor that it changes at all."""


def fingerprint(directory: Path, quantization: QuantizationSpec | None = None) -> str:
    """Names a checkpoint by its config, its weight files' headers and a few bytes of each tensor, and its quantization.

    Headers alone would give a model and its fine-tuned child one name. The rest of the weights is not read.
    An engine directory has the name of what it was built from. Raises CheckpointError for a damaged file.
    """
    manifest = read_manifest(directory)
    if manifest is not None:
        return manifest.fingerprint
    digest = hashlib.sha256((directory / "config.json").read_bytes())
    if quantization is not None:
        digest.update(repr(quantization).encode())
    for file in sorted(directory.glob("*.safetensors")):
        for sample in _samples(file):
            digest.update(sample)
    return digest.hexdigest()[:16]


def samples_of(file: Path) -> str:
    """Names one file of weights in the same way. Raises CheckpointError, OSError."""
    digest = hashlib.sha256()
    for sample in _samples(file):
        digest.update(sample)
    return digest.hexdigest()


def _samples(file: Path) -> list[bytes]:
    """A safetensors file's header, and of each tensor what lies in its middle."""
    with file.open("rb") as stream:
        size_field = stream.read(8)
        header_bytes = int.from_bytes(size_field, "little")
        if len(size_field) + header_bytes > os.fstat(stream.fileno()).st_size:
            raise CheckpointError(f"{file} says that its header has {header_bytes} bytes, more than it has itself")
        header = stream.read(header_bytes)
        samples, first = [size_field + header], stream.tell()
        try:
            places = _places(header)
            for start, end in places:
                stream.seek(first + (start + end) // 2)
                samples.append(stream.read(_SAMPLE_BYTES))
        except (ValueError, TypeError, KeyError, AttributeError, OverflowError, RecursionError) as error:
            raise CheckpointError(f"{file} has a header that is none of safetensors ({error!r})") from error
        num_bytes, num_told = os.fstat(stream.fileno()).st_size, first + max((end for _, end in places), default=0)
    if num_bytes != num_told:
        raise CheckpointError(f"{file} has {num_bytes} bytes, and its header tells of {num_told}")
    return samples


def _places(header: bytes) -> list[tuple[int, int]]:
    """Where each tensor begins and ends, in bytes after the header."""
    tensors = (tensor for name, tensor in json.loads(header).items() if name != "__metadata__")
    return [(start, end) for start, end in (tensor["data_offsets"] for tensor in tensors)]
