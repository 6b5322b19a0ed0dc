"""Quantization to float8: how far from the numbers, and what scales are shared."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from kvasir_kernels.dispatch import Grain, Quantized, float8_linear, quantize_float8
from kvasir_kernels.float8.reference import LARGEST, quantize_weight
from kvasir_kernels.float8_linear.reference import has_blocks


@given(
    num_tokens=st.integers(1, 5), size=st.integers(1, 300), exponent=st.integers(-20, 20), grain=st.sampled_from(Grain)
)
def test_a_number_is_off_by_a_sixteenth_at_most(num_tokens: int, size: int, exponent: int, grain: Grain) -> None:
    x = torch.randn(num_tokens, size, generator=torch.Generator().manual_seed(size)) * 2.0**exponent
    quantized = quantize_float8(x, grain)
    assert quantized.scale.shape == (num_tokens, 1 if grain is Grain.ROW else -(-size // 128))
    smallest = quantized.scale.max().item() * 2**-10
    torch.testing.assert_close(quantized.widened(), x, rtol=2**-4, atol=smallest)


def test_each_block_of_a_row_has_its_own_scale() -> None:
    x = torch.cat((torch.full((1, 128), 1e-3), torch.full((1, 128), 1e3), torch.full((1, 7), 5.0)), 1)
    torch.testing.assert_close(quantize_float8(x, Grain.BLOCK).widened(), x)
    assert quantize_float8(x, Grain.ROW).widened()[0, 0] == 0


def test_a_given_scale_cuts_what_it_is_too_small_for() -> None:
    quantized = quantize_float8(torch.tensor([[1.0, 1e6, -1e6]]), torch.tensor([0.5]))
    assert quantized.widened().tolist() == [[1.0, LARGEST / 2, -LARGEST / 2]]


def test_zeros_stay_zero_and_nan_stays_nan() -> None:
    for grain in Grain:
        assert quantize_float8(torch.zeros(2, 5), grain).widened().eq(0).all()
        assert quantize_float8(torch.tensor([[torch.nan, 1.0]]), grain).widened()[0, 0].isnan()


def test_weights_have_squares_or_rows() -> None:
    weight = torch.randn(200, 300)
    squares, rows = (quantize_weight(weight, grain) for grain in (Grain.BLOCK, Grain.ROW))
    assert squares.scale.shape == (2, 3)
    assert rows.scale.shape == (200, 1)
    for quantized in (squares, rows):
        torch.testing.assert_close(quantized.widened(), weight, rtol=2**-4, atol=1e-4)


@pytest.mark.parametrize("grain", Grain)
def test_a_product_is_that_of_what_the_numbers_stand_for(grain: Grain) -> None:
    x, weight = quantize_float8(torch.randn(3, 300), grain), quantize_weight(torch.randn(130, 300), grain)
    bias = torch.randn(130)
    expected = x.widened().double() @ weight.widened().double().T + bias.double()
    product = float8_linear(x, weight, bias, torch.float32)
    torch.testing.assert_close(product.double(), expected, atol=1e-3, rtol=1e-4)


def test_a_product_with_one_scale_for_all_is_torchs_own() -> None:
    x = quantize_float8(torch.randn(32, 64), torch.tensor([0.01]))
    weight = quantize_float8(torch.randn(16, 64), torch.tensor([0.02]))
    theirs = torch._scaled_mm(x.values, weight.values.T, x.scale, weight.scale, out_dtype=torch.float32)
    torch.testing.assert_close(float8_linear(x, weight, None, torch.float32), theirs, atol=1e-3, rtol=1e-3)


def test_the_kernel_takes_blocks_with_squares_and_rows_with_rows() -> None:
    x, weight = torch.randn(3, 300), torch.randn(130, 300)
    for grain in Grain:
        assert has_blocks(quantize_float8(x, grain), quantize_weight(weight, grain)) is (grain is Grain.BLOCK)
    with pytest.raises(AssertionError, match="are not"):
        has_blocks(quantize_float8(x, Grain.ROW), quantize_weight(weight, Grain.BLOCK))


def test_an_empty_step_is_quantized() -> None:
    quantized: Quantized = quantize_float8(torch.zeros(0, 256), Grain.BLOCK)
    assert (quantized.values.shape, quantized.scale.shape) == ((0, 256), (0, 2))
