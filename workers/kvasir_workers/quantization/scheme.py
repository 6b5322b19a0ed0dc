"""The schemes by name. A new one is an entry here, and a form of matrix that the kernels multiply with."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from kvasir_kernels.dispatch import Grain, QuantizedMatrix
from kvasir_kernels.float8.reference import BLOCK
from kvasir_kernels.quantized_linear.reference import quantize
from kvasir_protocol.errors import ConfigError
from kvasir_workers.model.tensor_size import TensorSize

_SCALE_DTYPE = torch.bfloat16

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

    def restored(self, codes: Tensor, scales: Tensor, num_inputs: int) -> QuantizedMatrix:
        """What was quantized before, from its parts."""
        return QuantizedMatrix(codes, scales, self.num_bits, self._group_size(num_inputs))

    def sizes(self, shape: tuple[int, ...]) -> tuple[TensorSize, TensorSize]:
        """Of the codes and of the scales of a matrix [O, E]."""
        num_outputs, num_inputs = shape
        num_groups = -(-num_inputs // self._group_size(num_inputs))
        is_paired = self.num_bits == _NIBBLE_BITS
        codes = TensorSize(torch.uint8 if is_paired else torch.int8, (num_outputs, num_inputs // (1 + is_paired)))
        return codes, TensorSize(_SCALE_DTYPE, (num_outputs, num_groups))

    def num_bytes(self, shape: tuple[int, ...]) -> int:
        """What a matrix [O, E] takes."""
        return sum(size.num_bytes for size in self.sizes(shape))

    def num_bits_per_weight(self, num_inputs: int) -> float:
        """With the scale that it shares."""
        return self.num_bits + 8 * _SCALE_DTYPE.itemsize / self._group_size(num_inputs)

    def _group_size(self, num_inputs: int) -> int:
        return num_inputs if self.group_size is None else min(self.group_size, num_inputs)


_FLOAT8_SCALE_BYTES = 4
"""float32."""


@dataclass(frozen=True, slots=True)
class Float8Format:
    """Weights of 8 bits, multiplied with activations that are quantized to 8 bits, too.

    grain: each output and each token have a scale; or each square of 128 by 128 weights, and each 128 numbers of a
    token. has_input_scale: instead of each token all inputs of a matrix have one, which the checkpoint tells.
    """

    grain: Grain
    has_input_scale: bool = False

    def scale_shape(self, shape: tuple[int, ...]) -> tuple[int, int]:
        """Of the scales of a matrix [O, E]."""
        num_outputs, num_inputs = shape
        if self.grain is Grain.ROW:
            return num_outputs, 1
        return -(-num_outputs // BLOCK), -(-num_inputs // BLOCK)

    def num_bits_per_weight(self, num_inputs: int) -> float:
        """With the scale that it shares."""
        num_sharing = num_inputs if self.grain is Grain.ROW else BLOCK * BLOCK
        return 8 + 8 * _FLOAT8_SCALE_BYTES / num_sharing


ScaleName = Literal["weight_scale", "weight_scale_inv"]
"""How a checkpoint of float8 calls what its weights are multiplied with."""


@dataclass(frozen=True, slots=True, kw_only=True)
class QuantizationSpec:
    """What a scheme makes of a model while it is loaded, or what its checkpoint holds. Norms and biases stay wide.

    layers: of the matrices of all layers. head: of the output matrix, which errs for every token, also where it is the
    embedding; None: it stays wide. stored_scales: of a checkpoint that is quantized already; None: it is done while
    loading.
    unquantized: parameters, matrices of layers, that stay wide all the same.
    """

    name: str
    layers: WeightFormat | Float8Format
    head: WeightFormat | None
    stored_scales: ScaleName | None = None
    unquantized: tuple[str, ...] = ()

    @property
    def float8(self) -> Float8Format | None:
        """Of the layers' matrices, if they have it."""
        return self.layers if isinstance(self.layers, Float8Format) else None


_INT8 = WeightFormat(8)

SCHEMES: Mapping[str, QuantizationSpec] = {
    spec.name: spec
    for spec in (
        QuantizationSpec(name="int8", layers=_INT8, head=_INT8),
        QuantizationSpec(name="int4", layers=WeightFormat(4, 32), head=_INT8),
        QuantizationSpec(name="int4-g64", layers=WeightFormat(4, 64), head=_INT8),
        QuantizationSpec(name="int4-g128", layers=WeightFormat(4, 128), head=_INT8),
        QuantizationSpec(name="fp8", layers=Float8Format(Grain.ROW), head=None),
        QuantizationSpec(name="fp8-block", layers=Float8Format(Grain.BLOCK), head=None),
    )
}


def find_scheme(name: str | None) -> QuantizationSpec | None:
    """The scheme of that name; None for none. Raises ConfigError for one that there is not."""
    if name is None:
        return None
    if name not in SCHEMES:
        raise ConfigError(f"quantization {name!r} is not known; there are {', '.join(SCHEMES)}")
    return SCHEMES[name]
