"""Matrices of weights, which may be packed once they are filled, or be float8 from the start."""

import torch
from torch import Tensor, nn

from kvasir_kernels.dispatch import (
    Grain,
    PackedWeight,
    Quantized,
    QuantizedMatrix,
    embedding,
    float8_linear,
    linear,
    pack_quantized,
    pack_weight,
    quantize_float8,
)
from kvasir_kernels.float8.reference import BLOCK, FLOAT8, quantize_weight
from kvasir_workers.model.tensor_size import TensorSize
from kvasir_workers.quantization.scheme import Float8Format, QuantizationSpec, WeightFormat

_WEIGHTS_AT_ONCE = 2**20
"""Quantized together, so that what lies in between takes some 12 MB."""


class Matrix(nn.Module):
    """Weights [O, E]. Packed, they are no parameter any more and take the same memory; quantized, they take less."""

    def __init__(self, num_outputs: int, num_inputs: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(num_outputs, num_inputs))
        self._packed: PackedWeight | None = None

    def pack(self, quantization: QuantizationSpec | None = None) -> None:
        """Put the weights in the order in which the device reads them fastest, if it has one; once they are final."""
        if self._packed is not None:
            return
        self._hold(self._quantized(quantization) or pack_weight(self.weight, has_rows=self._has_rows))

    def pack_from(self, weight: Tensor) -> bool:
        """Pack weights from where they lie, a mapped file say, in place of those that are here; if they are packed."""
        self._hold(pack_weight(weight, has_rows=self._has_rows) if weight.device == self.weight.device else None)
        return self._packed is not None

    def adopt(self, quantization: QuantizationSpec, codes: Tensor, scales: Tensor) -> None:
        """Take what `quantized` gave at another time, in place of the weights."""
        form = self._form(quantization)
        assert form is not None, f"{quantization.name} has no codes for this matrix"
        matrix = form.restored(codes, scales, self.weight.shape[1])
        self._hold(pack_quantized(matrix, self.weight.dtype))

    def quantized(self, quantization: QuantizationSpec) -> QuantizedMatrix | None:
        """The weights in the scheme's form; None for a matrix that it leaves as it is."""
        form = self._form(quantization)
        return None if form is None else form.quantize(self.weight)

    def quantized_sizes(self, quantization: QuantizationSpec) -> tuple[TensorSize, TensorSize] | None:
        """Of what `quantized` gives."""
        form = self._form(quantization)
        return None if form is None else form.sizes(self.weight.shape)

    def _hold(self, packed: PackedWeight | None) -> None:
        """Nothing but what is packed, if it is."""
        self._packed = packed
        if packed is not None:
            self._dtype = self.weight.dtype
            del self.weight

    def num_saved_bytes(self, quantization: QuantizationSpec) -> int:
        """By how much quantized weights are smaller than those that are here now."""
        form = self._form(quantization)
        return 0 if form is None else self.weight.nbytes - form.num_bytes(self.weight.shape)

    def _quantized(self, quantization: QuantizationSpec | None) -> PackedWeight | None:
        matrix = None if quantization is None else self.quantized(quantization)
        return None if matrix is None else pack_quantized(matrix, self.weight.dtype)

    def _form(self, quantization: QuantizationSpec) -> WeightFormat | None:
        """Of the weights once they are packed; None for a matrix that the scheme leaves as it is."""
        wanted = self._wanted_form(quantization)
        return wanted if wanted is not None and wanted.takes(self.weight.shape) else None

    def _wanted_form(self, quantization: QuantizationSpec) -> WeightFormat | None:
        """What the scheme has for all matrices of this kind."""
        return quantization.layers if isinstance(quantization.layers, WeightFormat) else None

    @property
    def _has_rows(self) -> bool:
        return False

    @property
    def dtype(self) -> torch.dtype:
        """Of the activations."""
        return self.weight.dtype if self._packed is None else self._dtype

    @property
    def weights(self) -> Tensor | PackedWeight:
        """In the form in which they are now."""
        return self.weight if self._packed is None else self._packed


InputForm = Grain | Tensor | None
"""What a matrix wants to be given: float8 of this grain, or of the scale [1] that all inputs share; None: wide."""


class Linear(Matrix):
    """An affine map of the last axis.

    Of float8 are `weight` [O, E] and, in float32, `weight_scale` and perhaps `input_scale` [1]; see Float8Format.
    """

    def __init__(self, num_inputs: int, num_outputs: int, *, bias: bool) -> None:
        super().__init__(num_outputs, num_inputs)
        self.bias = nn.Parameter(torch.empty(num_outputs)) if bias else None
        self.weight_scale: nn.Parameter | None = None
        self.input_scale: nn.Parameter | None = None
        self._grain = Grain.ROW

    def become_float8(self, form: Float8Format) -> None:
        """Before memory is taken. Activations keep the dtype that the weights had."""
        weight, meta = self.weight, self.weight.device
        self._dtype, self._grain = weight.dtype, form.grain
        self.weight = _constant(torch.empty(weight.shape, dtype=FLOAT8, device=meta))
        self.weight_scale = _constant(torch.empty(form.scale_shape(weight.shape), dtype=torch.float32, device=meta))
        if form.has_input_scale:
            self.input_scale = _constant(torch.empty(1, dtype=torch.float32, device=meta))

    @property
    def is_float8(self) -> bool:
        return self.weight_scale is not None

    @property
    def input_form(self) -> InputForm:
        """What `forward` takes without quantizing it."""
        if not self.is_float8:
            return None
        return self._grain if self.input_scale is None else self.input_scale

    @property
    def dtype(self) -> torch.dtype:
        return self._dtype if self.is_float8 else super().dtype

    def quantize_from(self, weight: Tensor) -> None:
        """Take float8 weights and their scales from wide ones [O, E]."""
        assert self.weight_scale is not None, "a matrix that is not float8"
        per_scale = 1 if self._grain is Grain.ROW else BLOCK
        num_rows = max(1, _WEIGHTS_AT_ONCE // (BLOCK * weight.shape[1])) * BLOCK
        for start in range(0, len(weight), num_rows):
            part = quantize_weight(weight[start : start + num_rows], self._grain)
            self.weight[start : start + num_rows].copy_(part.values)
            self.weight_scale[start // per_scale :][: len(part.scale)].copy_(part.scale)

    def pack(self, quantization: QuantizationSpec | None = None) -> None:
        """Float8 stays as it is."""
        if not self.is_float8:
            super().pack(quantization)

    def forward(self, x: Tensor | Quantized) -> Tensor:
        """Return the products of `x` [T, E]: [T, O] in its dtype; float8 is for matrices of that input_form alone."""
        form = self.input_form
        if form is None:
            assert isinstance(x, Tensor), "float8 for a matrix that is not"
            return linear(x, self.weights, self.bias, x.dtype)
        assert self.weight_scale is not None
        quantized = x if isinstance(x, Quantized) else quantize_float8(x, form)
        return float8_linear(quantized, Quantized(self.weight, self.weight_scale), self.bias, self.dtype)


def _constant(tensor: Tensor) -> nn.Parameter:
    return nn.Parameter(tensor, requires_grad=False)


class LogitHead(Matrix):
    """From hidden states to logits."""

    def logits(self, hidden: Tensor) -> Tensor:
        """Return the next-token logits of `hidden` [R, E]: [R, V] float32."""
        return linear(hidden, self.weights, None, torch.float32)

    def _wanted_form(self, quantization: QuantizationSpec) -> WeightFormat | None:
        return quantization.head


class TokenEmbedding(LogitHead):
    """A vector for each token; the same matrix is the head where embeddings are tied."""

    def forward(self, token_ids: Tensor) -> Tensor:
        """Return the vectors of `token_ids` [T]: [T, E]."""
        return embedding(token_ids, self.weights, self.dtype)

    @property
    def _has_rows(self) -> bool:
        return True
