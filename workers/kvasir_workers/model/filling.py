"""Puts what a checkpoint holds into a decoder's parameters, part by part.

A matrix that is float8 while its checkpoint is not is gathered in the model's dtype and quantized when it is whole: of
all matrices only a few are ever there in that dtype.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import assert_never

import torch
from torch import Tensor

from kvasir_kernels.float8.reference import BLOCK
from kvasir_protocol.errors import CheckpointError
from kvasir_workers.model.checkpoint import TensorFile, TensorSlice
from kvasir_workers.model.decoder import Decoder
from kvasir_workers.model.linear import Linear
from kvasir_workers.model.weight_map import Place
from kvasir_workers.quantization.scheme import QuantizationSpec
from kvasir_workers.reclaim import give_back_freed, give_back_read


@dataclass(frozen=True, slots=True)
class TensorPart:
    """Rows and columns (None: all) of a stored tensor, which become the rows from start on of a parameter."""

    parameter: str
    start: int
    rows: range
    columns: range | None = None


def part_of(
    place: Place, rows: range | None = None, columns: range | None = None, start: int | None = None
) -> TensorPart:
    """What is wanted of a tensor if these rows (None: all) and columns are wanted of the matrix that it belongs to.

    start: where the rows go, unless it is where the whole would. Raises CheckpointError where blocks would be cut.
    """
    rows = range(place.num_rows) if rows is None else rows
    start = place.start if start is None else start
    match place.content:
        case "numbers" | "matrix" | "float8":
            return TensorPart(place.parameter, start, rows, columns)
        case "row scales":
            return TensorPart(place.parameter, start, rows)
        case "block scales":
            first = _blocks(range(start, start), place).start
            block_columns = None if columns is None else _blocks(columns, place)
            return TensorPart(place.parameter, first, _blocks(rows, place), block_columns)
        case "input scale":
            return TensorPart(place.parameter, 0, range(1))
        case _:
            assert_never(place.content)


def _blocks(numbers: range, place: Place) -> range:
    if numbers.start % BLOCK:
        raise CheckpointError(
            f"{place.parameter} would be cut at {numbers.start}, but its scales are for blocks of {BLOCK}; choose a "
            "tensor_parallel_size that cuts between blocks, or take a checkpoint with a scale for each row"
        )
    return range(numbers.start // BLOCK, -(-numbers.stop // BLOCK))


Parts = Mapping[str, Sequence[TensorPart]]
"""What is wanted of each stored tensor, by its name."""


class Filling:
    """One decoder's. parts: all that will come; with the last of its own a matrix is quantized, and packed if it packs.

    Integers are packed in any case.
    """

    def __init__(
        self, decoder: Decoder, quantization: QuantizationSpec | None, parts: Parts, *, packs: bool = False
    ) -> None:
        self._quantization = quantization
        self._packs = packs or (quantization is not None and quantization.float8 is None)
        self._parameters: dict[str, Tensor] = dict(decoder.named_parameters())
        self._matrices = decoder.matrices()
        self._num_missing = Counter(part.parameter for wanted in parts.values() for part in wanted)
        self._wide: dict[str, Tensor] = {}
        for name, parameter in self._parameters.items():
            if name.endswith(".input_scale"):
                parameter.zero_()  # the largest of those that come will be there

    def read(self, tensors: TensorFile, parts: Parts) -> None:
        """Take these parts from a file, and nothing else of its tensors."""
        for name, wanted in parts.items():
            stored = tensors.get_slice(name)
            for part in wanted:
                values = _read(stored, part)
                self._put(part, values)
                give_back_read(values)

    def _put(self, part: TensorPart, values: Tensor) -> None:
        target = self._target(part.parameter)[part.start : part.start + len(part.rows)]
        if values.dim() < target.dim():
            values = values.unsqueeze(-1)  # a scale for each row, or one for all
        if part.parameter.endswith(".input_scale"):
            # Matrices that are fused here share their inputs: by the largest scale none is cut.
            values = torch.maximum(target, values.to(target))
        target.copy_(values)
        self._num_missing[part.parameter] -= 1
        if not self._num_missing[part.parameter]:
            del target
            self._finish(part.parameter)

    def _target(self, name: str) -> Tensor:
        """Where the parameter's numbers go as they are stored."""
        if not self._is_quantized_here(name):
            return self._parameters[name]
        if name not in self._wide:
            matrix, parameter = self._matrices[name], self._parameters[name]
            self._wide[name] = torch.empty(parameter.shape, dtype=matrix.dtype, device=parameter.device)
        return self._wide[name]

    def _finish(self, name: str) -> None:
        """All of it is there."""
        matrix = self._matrices.get(name)
        del self._parameters[name]
        if isinstance(matrix, Linear) and name in self._wide:
            matrix.quantize_from(self._wide.pop(name))
            give_back_freed()
        elif matrix is not None and self._packs:
            matrix.pack(self._quantization)
            give_back_freed()

    def _is_quantized_here(self, name: str) -> bool:
        matrix = self._matrices.get(name)
        is_stored = self._quantization is not None and self._quantization.stored_scales is not None
        return isinstance(matrix, Linear) and matrix.is_float8 and not is_stored


def _read(stored: TensorSlice, part: TensorPart) -> Tensor:
    if prod(stored.get_shape()) == 1:
        return stored[()].reshape(())  # without rows, in whatever shape: one number for all
    columns = () if part.columns is None else (slice(part.columns.start, part.columns.stop),)
    return stored[(slice(part.rows.start, part.rows.stop), *columns)]
