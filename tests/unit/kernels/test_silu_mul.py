"""SwiGLU's gate against its definition in float64."""

import pytest
import torch

from kvasir_kernels.dispatch import silu_mul


@pytest.mark.parametrize(("num_tokens", "width"), [(1, 1), (5, 7), (3, 96)])
def test_equals_its_definition(num_tokens: int, width: int) -> None:
    gate, up = torch.randn(2, num_tokens, width).unbind()
    wide = gate.double()
    expected = wide / (1 + (-wide).exp()) * up.double()
    torch.testing.assert_close(silu_mul(torch.cat((gate, up), 1)).double(), expected, atol=1e-6, rtol=1e-5)
