"""Safetensors files in an order of our choosing: the one in which they are read again.

    | 8 bytes: size of the header | header, JSON, padded | tensor | tensor | ... |

The library's own writer sorts tensors by dtype and name, and wants all of them at once.
"""

import hashlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path

import torch
from torch import Tensor

from kvasir_workers.model.tensor_size import DTYPE_NAMES, TensorSize

_ALIGNMENT = 4096
"""The first tensor begins with a page of memory."""


def write_tensors(file: Path, sizes: Mapping[str, TensorSize], tensors: Iterable[Tensor]) -> str:
    """Write tensors one by one, each as it comes, and return the file's SHA-256. sizes: of all of them, in order."""
    digest = hashlib.sha256()
    with file.open("wb") as stream:
        header = _header(sizes)
        stream.write(header)
        digest.update(header)
        for (name, size), tensor in zip(sizes.items(), tensors, strict=True):
            assert (tensor.dtype, tuple(tensor.shape)) == (size.dtype, size.shape), f"{name}: {tensor.shape}"
            content = tensor.detach().contiguous().flatten().view(torch.uint8).numpy()
            stream.write(content.data)
            digest.update(content.data)
    return digest.hexdigest()


def _header(sizes: Mapping[str, TensorSize]) -> bytes:
    entries, start = {}, 0
    for name, size in sizes.items():
        end = start + size.num_bytes
        entries[name] = {"dtype": DTYPE_NAMES[size.dtype], "shape": list(size.shape), "data_offsets": [start, end]}
        start = end
    text = json.dumps(entries).encode()
    text += b" " * (-(8 + len(text)) % _ALIGNMENT)
    return len(text).to_bytes(8, "little") + text


def sha256_of(file: Path) -> str:
    """Of all of it."""
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
