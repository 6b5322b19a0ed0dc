"""Weights of few bits: how near they come, and their products, packed and as they lie, against float64."""

import pytest
import torch
from torch import Tensor

from kvasir_kernels.dispatch import QuantizedMatrix, embedding, linear, pack_quantized
from kvasir_kernels.quantized_linear.reference import dequantize, integers, quantize

pytestmark = pytest.mark.usefixtures("kernels")

DTYPES = [torch.float32, torch.bfloat16, torch.float16]
SIZES = [(1, 4), (31, 8), (32, 36), (33, 64), (100, 100), (257, 300)]
ROWS = [1, 3, 6, 7, 12, 13, 24, 25, 40]
FORMATS = [(8, 10**6), (4, 32), (4, 64), (4, 128)]
ERROR = {torch.float32: 1e-5, torch.bfloat16: 2**-7, torch.float16: 2**-10}


def _quantized(size: tuple[int, int], num_bits: int, group_size: int) -> QuantizedMatrix:
    weight = torch.randn(size, generator=torch.Generator().manual_seed(sum(size)))
    return quantize(weight, num_bits, min(group_size, size[1]))


def _close(ours: Tensor, x: Tensor, matrix: QuantizedMatrix, bias: Tensor | None) -> None:
    expected = x.double() @ dequantize(matrix).double().T + (0 if bias is None else bias.double())
    error = ERROR[ours.dtype]
    torch.testing.assert_close(ours.double(), expected, atol=error * expected.abs().max().item(), rtol=error)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize(("num_bits", "group_size"), FORMATS)
def test_products_are_those_of_the_numbers_that_codes_and_scales_mean(
    num_bits: int, group_size: int, size: tuple[int, int], dtype: torch.dtype
) -> None:
    matrix = _quantized(size, num_bits, group_size)
    form = pack_quantized(matrix, dtype)
    for num_rows in ROWS:
        bias = torch.randn(size[0]).to(dtype) if num_rows % 2 else None
        x = torch.randn(num_rows, size[1]).to(dtype)
        ours = linear(x, form, bias, dtype)
        assert ours.dtype == dtype
        _close(ours, x, matrix, bias)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("num_bits", "group_size"), FORMATS)
def test_a_row_is_the_same_to_the_bit_beside_any_others(num_bits: int, group_size: int, dtype: torch.dtype) -> None:
    form = pack_quantized(_quantized((257, 300), num_bits, group_size), dtype)
    x = torch.randn(40, 300).to(dtype)
    together = linear(x, form, None, dtype)
    if form is not None and isinstance(form, QuantizedMatrix):
        return  # torch's products make no such promise
    for first, end in ((0, 1), (3, 5), (9, 13), (20, 26), (1, 40)):
        assert torch.equal(linear(x[first:end], form, None, dtype), together[first:end])


@pytest.mark.parametrize(("num_bits", "group_size"), FORMATS)
def test_results_can_be_asked_for_in_float32(num_bits: int, group_size: int) -> None:
    matrix, x = _quantized((70, 40), num_bits, group_size), torch.randn(3, 40).bfloat16()
    ours = linear(x, pack_quantized(matrix, torch.bfloat16), None, torch.float32)
    assert ours.dtype == torch.float32
    torch.testing.assert_close(ours, x.float() @ dequantize(matrix).T, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("num_bits", "group_size"), FORMATS)
def test_rows_are_what_codes_and_scales_mean(num_bits: int, group_size: int, dtype: torch.dtype) -> None:
    matrix, row_ids = _quantized((100, 72), num_bits, group_size), torch.tensor([99, 0, 33, 33])
    ours = embedding(row_ids, pack_quantized(matrix, dtype), dtype)
    assert torch.equal(ours, dequantize(matrix)[row_ids].to(dtype))


@pytest.mark.parametrize(("num_bits", "largest_error"), [(8, 0.6 / 127), (4, 1.1 / 8)])
def test_no_weight_is_further_from_its_own_than_a_step(num_bits: int, largest_error: float) -> None:
    weight = torch.randn(50, 200)
    error = (dequantize(quantize(weight, num_bits, 40)) - weight).abs().view(50, 5, 40)
    largest = weight.abs().view(50, 5, 40).amax(dim=-1, keepdim=True)
    assert (error <= largest_error * largest).all()


@pytest.mark.parametrize(("num_bits", "group_size"), FORMATS)
def test_numbers_that_the_codes_can_mean_stay_as_they_are(num_bits: int, group_size: int) -> None:
    """Quantized again, a quantized matrix is the same."""
    matrix = _quantized((40, 96), num_bits, group_size)
    again = quantize(dequantize(matrix), num_bits, matrix.group_size)
    torch.testing.assert_close(dequantize(again), dequantize(matrix), atol=0, rtol=2**-8)


def test_zeros_stay_zero() -> None:
    for num_bits in (4, 8):
        assert dequantize(quantize(torch.zeros(3, 64), num_bits, 32)).eq(0).all()


def test_codes_of_4_bits_take_half_a_byte() -> None:
    matrix = quantize(torch.randn(6, 64), 4, 32)
    assert matrix.codes.shape == (6, 32) and matrix.num_inputs == 64
    assert integers(matrix).amin() == -8 and integers(matrix).amax() <= 7


def test_not_a_number_shows_in_its_own_row_alone() -> None:
    x = torch.randn(14, 32)
    x[5, 7] = torch.nan
    ours = linear(x, pack_quantized(_quantized((40, 32), 8, 32), torch.float32), None, torch.float32)
    assert ours[5].isnan().all()
    assert ours[[row for row in range(14) if row != 5]].isfinite().all()


@pytest.mark.parametrize(("num_bits", "group_size"), FORMATS)
def test_any_number_of_threads_gives_the_same_bits(num_bits: int, group_size: int) -> None:
    form, x = pack_quantized(_quantized((2049, 512), num_bits, group_size), torch.float32), torch.randn(5, 512)
    one, before = linear(x, form, None, torch.float32), torch.get_num_threads()
    torch.set_num_threads(3)
    three = linear(x, form, None, torch.float32)
    torch.set_num_threads(before)
    assert torch.equal(one, three) or isinstance(form, QuantizedMatrix)


@pytest.mark.parametrize(("num_inputs", "group_size"), [(7, 7), (16, 8), (12, 6)])
def test_matrices_that_the_kernel_does_not_take_are_left_as_they_are(num_inputs: int, group_size: int) -> None:
    matrix, x = quantize(torch.randn(9, num_inputs), 8, group_size), torch.randn(2, num_inputs)
    form = pack_quantized(matrix, torch.float32)
    assert form is matrix
    _close(linear(x, form, None, torch.float32), x, matrix, None)
