"""Matrices of weights, which may be packed once they are filled."""

import torch
from torch import Tensor, nn

from kvasir_kernels.dispatch import PackedWeight, embedding, linear, pack_quantized, pack_weight
from kvasir_workers.quantization.scheme import QuantizationSpec, WeightFormat


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
        self._packed = self._quantized(quantization) or pack_weight(self.weight, has_rows=self._has_rows)
        if self._packed is not None:
            self._dtype = self.weight.dtype
            del self.weight

    def num_saved_bytes(self, quantization: QuantizationSpec) -> int:
        """By how much quantized weights are smaller than those that are here now."""
        shape, form = self.weight.shape, self._format(quantization)
        return self.weight.nbytes - form.num_bytes(shape) if form.takes(shape) else 0

    def _quantized(self, quantization: QuantizationSpec | None) -> PackedWeight | None:
        if quantization is None or not self._format(quantization).takes(self.weight.shape):
            return None
        return pack_quantized(self._format(quantization).quantize(self.weight), self.weight.dtype)

    def _format(self, quantization: QuantizationSpec) -> WeightFormat:
        return quantization.layers

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


class Linear(Matrix):
    """An affine map of the last axis."""

    def __init__(self, num_inputs: int, num_outputs: int, *, bias: bool) -> None:
        super().__init__(num_outputs, num_inputs)
        self.bias = nn.Parameter(torch.empty(num_outputs)) if bias else None

    def forward(self, x: Tensor) -> Tensor:
        """Return the products of `x` [T, E]: [T, O] in its dtype."""
        return linear(x, self.weights, self.bias, x.dtype)


class LogitHead(Matrix):
    """From hidden states to logits."""

    def logits(self, hidden: Tensor) -> Tensor:
        """Return the next-token logits of `hidden` [R, E]: [R, V] float32."""
        return linear(hidden, self.weights, None, torch.float32)

    def _format(self, quantization: QuantizationSpec) -> WeightFormat:
        return quantization.head


class TokenEmbedding(LogitHead):
    """A vector for each token; the same matrix is the head where embeddings are tied."""

    def forward(self, token_ids: Tensor) -> Tensor:
        """Return the vectors of `token_ids` [T]: [T, E]."""
        return embedding(token_ids, self.weights, self.dtype)

    @property
    def _has_rows(self) -> bool:
        return True
