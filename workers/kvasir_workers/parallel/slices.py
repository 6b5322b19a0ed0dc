"""What a rank reads of each tensor of a checkpoint, and where it puts it."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import groupby
from math import prod
from pathlib import Path
from typing import assert_never

import torch
from torch import Tensor

from kvasir_workers.model.checkpoint import StoredTensor, TensorFile, open_tensors
from kvasir_workers.model.decoder import Decoder
from kvasir_workers.model.loader import checked_tensors
from kvasir_workers.model.weight_map import Place, weight_map
from kvasir_workers.parallel.shard import ModelShard


@dataclass(frozen=True, slots=True)
class TensorPart:
    """Rows and columns (None: all) of a stored tensor, which become the rows from start on of a parameter."""

    parameter: str
    start: int
    rows: range
    columns: range | None = None


def parts_of(place: Place, shard: ModelShard) -> list[TensorPart]:
    """What the rank has of a tensor whose place in the whole decoder is given; nothing, if other ranks have it."""
    parameter = _local_name(place.parameter, shard)
    if parameter is None:
        return []
    head_dim, whole = shard.whole.head_dim, range(place.num_rows)
    query_rows = range(shard.query_heads.start * head_dim, shard.query_heads.stop * head_dim)
    match place.cut:
        case "whole":
            return [TensorPart(parameter, place.start, whole)]
        case "vocabulary":
            return [TensorPart(parameter, 0, shard.vocabulary)]
        case "query heads":
            return [TensorPart(parameter, 0, query_rows)]
        case "kv heads":
            return _kv_parts(place, parameter, shard)
        case "gate":
            start = len(shard.gate) if place.start else 0
            return [TensorPart(parameter, start, shard.gate)]
        case "query columns":
            return [TensorPart(parameter, 0, whole, query_rows)]
        case "gate columns":
            return [TensorPart(parameter, 0, whole, shard.gate)]
        case "first rank":
            return [TensorPart(parameter, 0, whole)] if shard.place.tensor_rank == 0 else []
        case _:
            assert_never(place.cut)


def _kv_parts(place: Place, parameter: str, shard: ModelShard) -> list[TensorPart]:
    """Head by head: keys come after the queries, values after the keys."""
    spec = shard.whole
    is_value = place.start > spec.num_heads * spec.head_dim
    first = len(shard.query_heads) + (len(shard.kv.kv_heads) if is_value else 0)
    return [
        TensorPart(parameter, (first + index) * spec.head_dim, range(head * spec.head_dim, (head + 1) * spec.head_dim))
        for index, head in enumerate(shard.kv.kv_heads)
    ]


def _local_name(parameter: str, shard: ModelShard) -> str | None:
    """What the rank's decoder calls it; None if it is another stage's."""
    hall, _, rest = parameter.partition(".")
    match hall:
        case "layers":
            index, _, name = rest.partition(".")
            layers = shard.kv.layers
            return f"layers.{int(index) - layers.start}.{name}" if int(index) in layers else None
        case "embedding":
            return parameter if shard.part.has_embedding else None
        case "lm_head":
            return parameter if shard.part.has_head else None
        case _:
            return parameter if shard.part.has_norm else None


def load_shard(path: Path, dtype: torch.dtype, device: torch.device, shard: ModelShard) -> Decoder:
    """The rank's decoder, its weights in dtype on the device. Raises CheckpointError, before memory is taken."""
    stored = checked_tensors(path, shard.whole)
    decoder = Decoder(shard.local, dtype, device, shard.part)
    parameters = dict(decoder.named_parameters())
    for name, parameter in parameters.items():
        if name.endswith((".output.bias", ".down.bias")):
            parameter.zero_()  # what the first rank of the stage adds is enough
    for file, parts in _parts_by_file(stored, shard):
        with open_tensors(file) as tensors:
            fill(parameters, tensors, parts)
    return decoder


def fill(parameters: Mapping[str, Tensor], tensors: TensorFile, parts: Mapping[str, list[TensorPart]]) -> None:
    """Read the parts of one file's tensors, and nothing else of them, into their places."""
    for name, wanted in parts.items():
        stored = tensors.get_slice(name)
        for part in wanted:
            rows = slice(part.rows.start, part.rows.stop)
            columns = () if part.columns is None else (slice(part.columns.start, part.columns.stop),)
            target = parameters[part.parameter].narrow(0, part.start, len(part.rows))
            target.copy_(stored[(rows, *columns)])


def shard_bytes(path: Path, dtype: torch.dtype, shard: ModelShard) -> int:
    """Bytes of the rank's weights, from headers alone. Raises CheckpointError."""
    stored = checked_tensors(path, shard.whole)
    by_name = (item for _, parts in _parts_by_file(stored, shard) for item in parts.items())
    return sum(_num_weights(stored[name], part) for name, parts in by_name for part in parts) * dtype.itemsize


def _num_weights(stored: StoredTensor, part: TensorPart) -> int:
    return len(part.rows) * (prod(stored.shape[1:]) if part.columns is None else len(part.columns))


def _parts_by_file(
    stored: Mapping[str, StoredTensor], shard: ModelShard
) -> Iterator[tuple[Path, dict[str, list[TensorPart]]]]:
    """Files that hold nothing for the rank are left out."""
    places = weight_map(shard.whole)
    for file, names in groupby(sorted(stored, key=lambda name: stored[name].file), key=lambda name: stored[name].file):
        parts = {name: parts_of(places[name], shard) for name in names}
        if wanted := {name: part for name, part in parts.items() if part}:
            yield file, wanted
