"""A checkpoint directory as it lies on disk: config, end tokens, and which tensor is in which file.

Only headers are read here, never weights.
"""

import json
from collections.abc import Iterable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from kvasir_protocol.errors import CheckpointError
from kvasir_workers.model.config_fields import ConfigFields
from kvasir_workers.model.staged_file import open_staged

_CONFIG = "config.json"
_GENERATION_CONFIG = "generation_config.json"
_SINGLE_FILE = "model.safetensors"
_INDEX = "model.safetensors.index.json"


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """One tensor of a checkpoint; `dtype` as safetensors names it (F32, BF16, ...)."""

    file: Path
    dtype: str
    shape: tuple[int, ...]


class TensorSlice(Protocol):
    """One tensor in an open safetensors file: its header, and any part of it without the rest."""

    def __getitem__(self, part: tuple[slice, ...]) -> Tensor: ...
    def get_shape(self) -> list[int]: ...
    def get_dtype(self) -> str: ...


class TensorFile(Protocol):
    """What we use of an open safetensors file; the library ships no types."""

    def keys(self) -> Iterable[str]: ...
    def get_slice(self, name: str) -> TensorSlice: ...
    def get_tensor(self, name: str) -> Tensor: ...


def read_config(directory: Path) -> dict[str, object]:
    """Return config.json as it stands; raises CheckpointError where it is missing or isn't a JSON object."""
    if not directory.is_dir():
        raise CheckpointError(f"no model directory at {directory}; give the path of a downloaded checkpoint")
    if not (directory / _CONFIG).is_file():
        raise CheckpointError(f"{directory} has no {_CONFIG}; give the directory that holds it, or download it again")
    return _read_json(directory / _CONFIG)


def read_eos_token_ids(directory: Path) -> tuple[int, ...]:
    """Return the tokens that end a sequence: generation_config.json's, or config.json's where it names none."""
    file = directory / _GENERATION_CONFIG
    fields = ConfigFields(_read_json(file) if file.is_file() else {}, str(file))
    if not fields.has("eos_token_id"):
        fields = ConfigFields(read_config(directory), str(directory / _CONFIG))
    value = fields.values.get("eos_token_id")
    ids = value if isinstance(value, list) else [] if value is None else [value]
    if not all(isinstance(item, int) and not isinstance(item, bool) and item >= 0 for item in ids):
        raise fields.wrong("eos_token_id", "a token id or a list of them")
    return tuple(ids)


def read_stored_tensors(directory: Path) -> dict[str, StoredTensor]:
    """Return every tensor of the checkpoint by name, from the headers of its safetensors files.

    Raises CheckpointError for missing, truncated or inconsistent files.
    """
    if (directory / _SINGLE_FILE).is_file():
        return read_header(directory / _SINGLE_FILE)
    if not (directory / _INDEX).is_file():
        raise CheckpointError(
            f"{directory} has neither {_SINGLE_FILE} nor {_INDEX}; "
            "only safetensors checkpoints are read: download the weights, or convert them with save_pretrained"
        )
    return _read_shards(directory, _read_index(directory))


def open_tensors(file: Path, device: torch.device | None = None) -> AbstractContextManager[TensorFile]:
    """Return a memory-mapped safetensors file; for a GPU, one whose tensors come there without a copy in host memory.

    Raises CheckpointError where it is missing, truncated or not safetensors at all.
    """
    if device is not None and device.type == "cuda":
        return open_staged(file, device)
    try:
        opened: AbstractContextManager[TensorFile] = safe_open(file, framework="pt", device="cpu")
        return opened
    except FileNotFoundError:
        raise CheckpointError(f"{file} is missing; download the checkpoint again") from None
    except (SafetensorError, OSError) as error:
        raise CheckpointError(
            f"{file} can't be read ({error}); it is truncated or damaged: download it again"
        ) from None


def _read_json(file: Path) -> dict[str, object]:
    try:
        content = json.loads(file.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{file} can't be read as JSON ({error}); download it again") from None
    if not isinstance(content, dict):
        raise CheckpointError(
            f"{file} holds a JSON {type(content).__name__} where an object is needed; download it again"
        )
    return content


def _read_index(directory: Path) -> Mapping[str, str]:
    """Return the index's weight map: the file of each tensor, which must lie in the checkpoint's own directory."""
    fields = ConfigFields(_read_json(directory / _INDEX), str(directory / _INDEX))
    weight_map = fields.section("weight_map").values
    files = {name: file for name, file in weight_map.items() if isinstance(file, str) and Path(file).name == file}
    if not files or len(files) != len(weight_map):
        raise CheckpointError(f'{fields.source}: "weight_map" must name a file of this directory for each tensor')
    return files


def _read_shards(directory: Path, files: Mapping[str, str]) -> dict[str, StoredTensor]:
    tensors: dict[str, StoredTensor] = {}
    for file in sorted(set(files.values())):
        tensors.update(read_header(directory / file))
    for name, file in files.items():
        if name not in tensors or tensors[name].file.name != file:
            raise CheckpointError(f"{directory / file} lacks {name}, which {_INDEX} places there; download it again")
    return tensors


def read_header(file: Path) -> dict[str, StoredTensor]:
    """Return the tensors of one file by name. Raises CheckpointError."""
    with open_tensors(file) as stored:
        slices = {name: stored.get_slice(name) for name in stored.keys()}  # noqa: SIM118 (not a dict)
        return {name: StoredTensor(file, s.get_dtype(), tuple(s.get_shape())) for name, s in slices.items()}
