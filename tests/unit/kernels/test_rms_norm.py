"""RMSNorm against a float64 computation and against transformers' own layer."""

import pytest
import torch
from transformers.models.llama.modeling_llama import LlamaRMSNorm

from kvasir_kernels.dispatch import Grain, add_rms_norm, add_rms_norm_float8, rms_norm

pytestmark = pytest.mark.usefixtures("kernels")

DTYPES = [torch.float32, torch.bfloat16, torch.float16]


@pytest.mark.parametrize("shape", [(1, 1), (3, 7), (5, 64), (2, 3, 33)])
def test_equals_a_float64_computation(shape: tuple[int, ...]) -> None:
    x, weight = torch.randn(shape), torch.randn(shape[-1])
    wide = x.double()
    expected = wide / (wide.square().mean(-1, keepdim=True) + 1e-5).sqrt() * weight.double()
    torch.testing.assert_close(rms_norm(x, weight, 1e-5).double(), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("dtype", DTYPES)
def test_rounds_where_transformers_rounds(dtype: torch.dtype, kernels: str) -> None:
    """The kernel adds the squares in another order: now and then a number falls to the other side of a rounding."""
    layer = LlamaRMSNorm(48, eps=1e-6).to(dtype)
    torch.nn.init.normal_(layer.weight)
    x = 3 * torch.randn(9, 48).to(dtype)
    with torch.inference_mode():
        ours, theirs = rms_norm(x, layer.weight, 1e-6), layer(x)
    if kernels == "torch" or dtype == torch.float16:
        assert torch.equal(ours, theirs)
    else:
        # One bit of the normed number, one of the product, and what the second adds where it doubles the first.
        torch.testing.assert_close(ours, theirs, atol=0, rtol=4 * torch.finfo(dtype).eps)
        assert (ours != theirs).sum() < ours.numel() / (2 if dtype == torch.float32 else 50)


@pytest.mark.parametrize("size", [1, 15, 16, 17, 48, 100])
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_number_that_is_none_spoils_its_own_row_alone(size: int, dtype: torch.dtype) -> None:
    x = torch.randn(3, size).to(dtype)
    x[1, size // 2] = torch.nan
    normed, total = add_rms_norm(x, torch.zeros_like(x), torch.ones(size, dtype=dtype), 1e-6)
    assert normed[1].isnan().all() and normed[[0, 2]].isfinite().all()
    assert torch.equal(total.isnan(), x.isnan())


@pytest.mark.parametrize("dtype", DTYPES)
def test_fused_addition_equals_addition_then_norm(dtype: torch.dtype) -> None:
    x, residual, weight = torch.randn(5, 32).to(dtype), torch.randn(5, 32).to(dtype), torch.randn(32)
    normed, total = add_rms_norm(x, residual, weight.to(dtype), 1e-6)
    assert torch.equal(total, x + residual)
    assert torch.equal(normed, rms_norm(x + residual, weight.to(dtype), 1e-6))


def test_arguments_are_left_as_they_were() -> None:
    x, residual = torch.ones(2, 4), torch.ones(2, 4)
    add_rms_norm(x, residual, torch.ones(4), 1e-6)
    assert torch.equal(x, torch.ones(2, 4))
    assert torch.equal(residual, torch.ones(2, 4))


@pytest.mark.parametrize("grain", Grain)
def test_in_float8_it_is_the_same_rounded(grain: Grain) -> None:
    x, residual = torch.randn(2, 3, 400).unbind()
    weight = torch.randn(400)
    quantized, total = add_rms_norm_float8(x, residual, weight, 1e-6, grain)
    normed, expected_total = add_rms_norm(x, residual, weight, 1e-6)
    torch.testing.assert_close(quantized.widened(), normed, rtol=2**-4, atol=1e-4)
    torch.testing.assert_close(total, expected_total)
