"""A safetensors file whose tensors come to a GPU in pieces, of which host memory holds only a few."""

import json
import math
import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from kvasir_protocol.errors import CheckpointError
from kvasir_workers.model.staging import Block, CudaLane, Staging
from kvasir_workers.model.tensor_size import DTYPES


@dataclass(frozen=True, slots=True)
class _Entry:
    """A tensor as the header has it. offset: of its first byte in the file."""

    dtype: str
    shape: tuple[int, ...]
    offset: int


class StagedSlice:
    """One tensor of the file: its header, and any rows and columns of it, on the device."""

    def __init__(self, file: int, entry: _Entry, staging: Staging, device: torch.device) -> None:
        self._file, self._entry, self._staging, self._device = file, entry, staging, device

    def get_shape(self) -> list[int]:
        return list(self._entry.shape)

    def get_dtype(self) -> str:
        return self._entry.dtype

    def __getitem__(self, part: tuple[slice, ...]) -> Tensor:
        """Rows, and columns of them: nothing else is read. Without rows: all of it."""
        shape, dtype = self._entry.shape, DTYPES[self._entry.dtype]
        ranges = [range(size)[wanted] for size, wanted in zip(shape, part, strict=False)]
        result = torch.empty([*map(len, ranges), *shape[len(ranges) :]], dtype=dtype, device=self._device)
        if result.numel():
            self._staging.send(self._file, self._block(ranges), result.flatten().view(torch.uint8))
        return result

    def _block(self, ranges: list[range]) -> Block:
        """Where they lie: whole rows side by side, or a run in each row."""
        shape, itemsize = self._entry.shape, DTYPES[self._entry.dtype].itemsize
        if len(ranges) < 2:
            row_bytes = math.prod(shape[1:]) * itemsize
            first, count = (ranges[0].start, len(ranges[0])) if ranges else (0, shape[0] if shape else 1)
            return Block(self._entry.offset + first * row_bytes, row_bytes, row_bytes, count)
        rows, columns = ranges
        number_bytes = math.prod(shape[2:]) * itemsize
        stride = shape[1] * number_bytes
        offset = self._entry.offset + rows.start * stride + columns.start * number_bytes
        return Block(offset, len(columns) * number_bytes, stride, len(rows))


class StagedFile:
    """The same as an open file of the safetensors library, with tensors on the device."""

    def __init__(self, file: int, entries: Mapping[str, _Entry], staging: Staging, device: torch.device) -> None:
        self._file, self._entries, self._staging, self._device = file, entries, staging, device

    def keys(self) -> Iterable[str]:
        return self._entries.keys()

    def get_slice(self, name: str) -> StagedSlice:
        return StagedSlice(self._file, self._entries[name], self._staging, self._device)

    def get_tensor(self, name: str) -> Tensor:
        return self.get_slice(name)[()]


@contextmanager
def open_staged(path: Path, device: torch.device, staging: Staging | None = None) -> Iterator[StagedFile]:
    """The file, until all that was asked of it is on the device. Raises CheckpointError for one that can't be read."""
    try:
        file = os.open(path, os.O_RDONLY)
    except OSError as error:
        raise CheckpointError(f"{path} can't be read ({error.strerror}); download it again") from None
    try:
        os.posix_fadvise(file, 0, 0, os.POSIX_FADV_SEQUENTIAL)
        with closing(staging or Staging(CudaLane(device))) as buffers:
            yield StagedFile(file, _read_header(file, path), buffers, device)
    finally:
        os.close(file)


def _read_header(file: int, path: Path) -> dict[str, _Entry]:
    try:
        size = int.from_bytes(os.pread(file, 8, 0), "little")
        header = json.loads(os.pread(file, min(size, os.fstat(file).st_size), 8))
        return {
            name: _Entry(entry["dtype"], tuple(entry["shape"]), 8 + size + entry["data_offsets"][0])
            for name, entry in header.items()
            if name != "__metadata__"
        }
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{path} is truncated or damaged ({error}); download it again") from None
