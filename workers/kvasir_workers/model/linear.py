"""Matrices of weights, which may be packed once they are filled."""

import torch
from torch import Tensor, nn

from kvasir_kernels.dispatch import PackedWeight, embedding, linear, pack_weight


class Matrix(nn.Module):
    """Weights [O, E]. Packed, they are no parameter any more and take the same memory."""

    def __init__(self, num_outputs: int, num_inputs: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(num_outputs, num_inputs))
        self._packed: PackedWeight | None = None

    def pack(self) -> None:
        """Put the weights in the order in which the device reads them fastest, if it has one."""
        self._packed = pack_weight(self.weight, has_rows=self._has_rows)
        if self._packed is not None:
            del self.weight

    @property
    def _has_rows(self) -> bool:
        return False

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


class TokenEmbedding(LogitHead):
    """A vector for each token; the same matrix is the head where embeddings are tied."""

    def forward(self, token_ids: Tensor) -> Tensor:
        """Return the vectors of `token_ids` [T]: [T, E]."""
        return embedding(token_ids, self.weights)

    @property
    def _has_rows(self) -> bool:
        return True
