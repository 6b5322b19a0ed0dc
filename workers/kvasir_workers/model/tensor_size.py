"""What is known of a tensor before it is there."""

from dataclasses import dataclass

import torch


@dataclass(frozen=True, slots=True)
class TensorSize:
    """Dtype and shape."""

    dtype: torch.dtype
    shape: tuple[int, ...]

    @property
    def num_bytes(self) -> int:
        return torch.Size(self.shape).numel() * self.dtype.itemsize
