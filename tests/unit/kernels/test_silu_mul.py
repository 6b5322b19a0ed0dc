"""SwiGLU's and GeGLU's gates against their definitions in float64."""

import pytest
import torch

from kvasir_kernels.dispatch import Grain, gelu_mul, gelu_mul_float8, silu_mul, silu_mul_float8

pytestmark = pytest.mark.usefixtures("kernels")


@pytest.mark.parametrize(("num_tokens", "width"), [(1, 1), (5, 7), (3, 96), (2, 16), (400, 33)])
def test_equals_its_definition(num_tokens: int, width: int) -> None:
    gate, up = torch.randn(2, num_tokens, width).unbind()
    wide = gate.double()
    expected = wide / (1 + (-wide).exp()) * up.double()
    torch.testing.assert_close(silu_mul(torch.cat((gate, up), 1)).double(), expected, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_is_rounded_after_the_activation_and_after_the_product(dtype: torch.dtype) -> None:
    gate, up = torch.randn(2, 50, 37).to(dtype).unbind()
    wide = gate.double()
    activated = (wide / (1 + (-wide).exp())).to(dtype)
    expected = activated.double() * up.double()
    ours = silu_mul(torch.cat((gate, up), 1)).double()
    torch.testing.assert_close(ours, expected, atol=1e-6, rtol=2 * torch.finfo(dtype).eps)


@pytest.mark.parametrize("value", [-200.0, -90.0, -87.5, -1e-30, 0.0, 80.0, 90.0, 1e30])
def test_extreme_gates_give_their_limits(value: float) -> None:
    gate = torch.full((1, 20), value)
    expected = gate.double() / (1 + (-gate.double()).exp())
    torch.testing.assert_close(
        silu_mul(torch.cat((gate, torch.ones(1, 20)), 1)).double(), expected, atol=1e-6, rtol=1e-5
    )


def test_nan_stays_nan() -> None:
    gate_up = torch.ones(1, 40)
    gate_up[0, 3] = torch.nan
    assert silu_mul(gate_up).isnan().nonzero().tolist() == [[0, 3]]


def test_gelu_is_the_one_with_tanh() -> None:
    gate, up = torch.randn(2, 7, 90).unbind()
    wide = gate.double()
    inner = (2 / torch.pi) ** 0.5 * (wide + 0.044715 * wide**3)
    expected = 0.5 * wide * (1 + inner.tanh()) * up.double()
    torch.testing.assert_close(gelu_mul(torch.cat((gate, up), 1)).double(), expected, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("grain", Grain)
def test_in_float8_it_is_the_same_rounded(grain: Grain) -> None:
    gate_up = torch.randn(4, 600)
    for narrow, wide in ((silu_mul_float8, silu_mul), (gelu_mul_float8, gelu_mul)):
        torch.testing.assert_close(narrow(gate_up, grain).widened(), wide(gate_up), rtol=2**-4, atol=1e-4)
