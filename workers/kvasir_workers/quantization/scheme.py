"""The schemes by name. A new one is an entry here, and a form of matrix that the kernels multiply with."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from kvasir_kernels.dispatch import QuantizedMatrix
from kvasir_kernels.quantized_linear.reference import quantize
from kvasir_protocol.errors import ConfigError

_SCALE_BYTES = 2
"""bfloat16."""

_NIBBLE_BITS = 4


@dataclass(frozen=True, slots=True)
class WeightFormat:
    """Integers of num_bits; group_size inputs of an output share a scale, None: all of them."""

    num_bits: int
    group_size: int | None = None

    def takes(self, shape: tuple[int, ...]) -> bool:
        """Whether a matrix [O, E] can have this format; one that can't is left as it is."""
        return len(shape) == 2 and (self.num_bits != _NIBBLE_BITS or shape[1] % 2 == 0)

    def quantize(self, weight: Tensor) -> QuantizedMatrix:
        return quantize(weight, self.num_bits, self._group_size(weight.shape[1]))

    def num_bytes(self, shape: tuple[int, ...]) -> int:
        """What a matrix [O, E] takes."""
        num_outputs, num_inputs = shape
        num_groups = -(-num_inputs // self._group_size(num_inputs))
        return math.prod(shape) * self.num_bits // 8 + num_outputs * num_groups * _SCALE_BYTES

    def num_bits_per_weight(self, num_inputs: int) -> float:
        """With the scale that it shares."""
        return self.num_bits + 8 * _SCALE_BYTES / self._group_size(num_inputs)

    def _group_size(self, num_inputs: int) -> int:
        return num_inputs if self.group_size is None else min(self.group_size, num_inputs)


@dataclass(frozen=True, slots=True, kw_only=True)
class QuantizationSpec:
    """What a scheme makes of a model while it is loaded. Norms and biases stay as they are.

    layers: of the matrices of all layers. head: of the embedding and the output matrix, which err for every token.
    """

    name: str
    layers: WeightFormat
    head: WeightFormat


_INT8 = WeightFormat(8)

SCHEMES: Mapping[str, QuantizationSpec] = {
    spec.name: spec
    for spec in (
        QuantizationSpec(name="int8", layers=_INT8, head=_INT8),
        QuantizationSpec(name="int4", layers=WeightFormat(4, 32), head=_INT8),
        QuantizationSpec(name="int4-g64", layers=WeightFormat(4, 64), head=_INT8),
        QuantizationSpec(name="int4-g128", layers=WeightFormat(4, 128), head=_INT8),
    )
}


def find_scheme(name: str | None) -> QuantizationSpec | None:
    """The scheme of that name; None for none. Raises ConfigError for one that there is not."""
    if name is None:
        return None
    if name not in SCHEMES:
        raise ConfigError(f"quantization {name!r} is not known; there are {', '.join(SCHEMES)}")
    return SCHEMES[name]
