"""SwiGLU's and GeGLU's gates in plain torch (Shazeer, 2020)."""

from torch import Tensor
from torch.nn import functional as F

from kvasir_kernels.float8.reference import Grain, Quantized, quantize


def silu_mul(gate_up: Tensor) -> Tensor:
    """Return silu(gate) * up, where `gate_up` [T, 2F] holds gate in its first F columns: [T, F]."""
    gate, up = gate_up.chunk(2, dim=-1)
    return F.silu(gate) * up


def gelu_mul(gate_up: Tensor) -> Tensor:
    """Return gelu(gate) * up, by the approximation with tanh (Hendrycks and Gimpel, 2016), for silu_mul's `gate_up`."""
    gate, up = gate_up.chunk(2, dim=-1)
    return F.gelu(gate, approximate="tanh") * up


def silu_mul_float8(gate_up: Tensor, to: Grain | Tensor) -> Quantized:
    """Return what silu_mul returns, in float8."""
    return quantize(silu_mul(gate_up), to)


def gelu_mul_float8(gate_up: Tensor, to: Grain | Tensor) -> Quantized:
    """Return what gelu_mul returns, in float8."""
    return quantize(gelu_mul(gate_up), to)
