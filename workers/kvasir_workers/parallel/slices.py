"""What a rank reads of each tensor of a checkpoint, and where it puts it."""

from collections.abc import Iterator
from dataclasses import replace
from itertools import groupby
from pathlib import Path
from typing import assert_never

import torch

from kvasir_workers.engine_directory.weights import open_engine_directory
from kvasir_workers.model.decoder import Decoder
from kvasir_workers.model.filling import Filling, TensorPart, part_of
from kvasir_workers.model.loader import checked_tensors, read_parts
from kvasir_workers.model.stored_quantization import stored_places
from kvasir_workers.model.weight_map import Place
from kvasir_workers.parallel.shard import ModelShard
from kvasir_workers.quantization.scheme import QuantizationSpec


def parts_of(place: Place, shard: ModelShard) -> list[TensorPart]:
    """What the rank has of a tensor whose place in the whole decoder is given; nothing, if other ranks have it.

    Raises CheckpointError if the cut goes through a block of weights that share a scale.
    """
    parameter = _local_name(place.parameter, shard)
    if parameter is None:
        return []
    place = replace(place, parameter=parameter)
    head_dim = shard.whole.head_dim
    query_rows = range(shard.query_heads.start * head_dim, shard.query_heads.stop * head_dim)
    match place.cut:
        case "whole":
            return [part_of(place)]
        case "vocabulary":
            return [part_of(place, shard.vocabulary, start=0)]
        case "query heads":
            return [part_of(place, query_rows, start=0)]
        case "kv heads":
            return _kv_parts(place, shard)
        case "gate":
            return [part_of(place, shard.gate, start=len(shard.gate) if place.start else 0)]
        case "query columns":
            return [part_of(place, columns=query_rows, start=0)]
        case "gate columns":
            return [part_of(place, columns=shard.gate, start=0)]
        case "first rank":
            return [part_of(place, start=0)] if shard.place.tensor_rank == 0 else []
        case _:
            assert_never(place.cut)


def _kv_parts(place: Place, shard: ModelShard) -> list[TensorPart]:
    """Heads that follow each other at once: keys come after the queries, values after the keys."""
    spec, heads = shard.whole, shard.kv.kv_heads
    is_value = place.start > spec.num_heads * spec.head_dim
    first = len(shard.query_heads) + (len(heads) if is_value else 0)
    return [
        part_of(
            place,
            range(heads[index] * spec.head_dim, (heads[index] + length) * spec.head_dim),
            start=(first + index) * spec.head_dim,
        )
        for index, length in _runs(heads)
    ]


def _runs(heads: tuple[int, ...]) -> Iterator[tuple[int, int]]:
    """(index of the first, number) of heads that follow each other."""
    # Where a head is one more than the one before, the distance to its index stays the same.
    for _, run in groupby(range(len(heads)), key=lambda index: heads[index] - index):
        indices = list(run)
        yield indices[0], len(indices)


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


def load_shard(
    path: Path,
    dtype: torch.dtype,
    device: torch.device,
    shard: ModelShard,
    quantization: QuantizationSpec | None = None,
) -> Decoder:
    """The rank's decoder, its weights in dtype on the device, or float8 where a quantization says so.

    What is quantized while loading is quantized as the rank has it: where a row of weights is cut, each part has a
    scale of its own. Raises CheckpointError, before memory is taken.
    """
    own = own_quantization(quantization, shard)
    if (built := open_engine_directory(path)) is not None:
        decoder = Decoder(shard.local, dtype, device, shard.part, own)
        built.fill(decoder, shard.place.rank, own)
        return decoder
    stored = checked_tensors(path, shard.whole, quantization)
    parts = {name: parts_of(place, shard) for name, place in stored_places(shard.whole, quantization).items()}
    decoder = Decoder(shard.local, dtype, device, shard.part, own)
    for name, parameter in decoder.named_parameters():
        if name.endswith((".output.bias", ".down.bias")):
            parameter.zero_()  # what the first rank of the stage adds is enough
    read_parts(Filling(decoder, own, parts), stored, parts, device)
    return decoder


def own_quantization(quantization: QuantizationSpec | None, shard: ModelShard) -> QuantizationSpec | None:
    """By the names of the rank's own decoder."""
    if quantization is None:
        return None
    names = (_local_name(parameter, shard) for parameter in quantization.unquantized)
    return replace(quantization, unquantized=tuple(name for name in names if name is not None))


def shard_bytes(path: Path, dtype: torch.dtype, shard: ModelShard, quantization: QuantizationSpec | None = None) -> int:
    """Bytes of the rank's weights, from headers alone. Raises CheckpointError, too if blocks would be cut."""
    if (built := open_engine_directory(path)) is not None:
        return built.weight_bytes(shard.place.rank)
    checked_tensors(path, shard.whole, quantization)
    for place in stored_places(shard.whole, quantization).values():
        parts_of(place, shard)
    own = own_quantization(quantization, shard)
    decoder = Decoder(shard.local, dtype, torch.device("meta"), shard.part, own)
    return sum(parameter.nbytes for parameter in decoder.parameters())
