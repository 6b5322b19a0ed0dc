"""SwiGLU's gate in plain torch (Shazeer, 2020)."""

from torch import Tensor
from torch.nn import functional as F


def silu_mul(gate_up: Tensor) -> Tensor:
    """Return silu(gate) * up, where `gate_up` [T, 2F] holds gate in its first F columns: [T, F]."""
    gate, up = gate_up.chunk(2, dim=-1)
    return F.silu(gate) * up
