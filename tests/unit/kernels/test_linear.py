"""Products with weights, as they lie and packed, against float64; and the rows of what was packed."""

import pytest
import torch
from torch import Tensor

from kvasir_kernels.dispatch import PackedWeight, embedding, linear, pack_weight
from kvasir_kernels.linear import onednn

pytestmark = pytest.mark.usefixtures("kernels")

DTYPES = [torch.float32, torch.bfloat16, torch.float16]
SIZES = [(1, 2), (31, 6), (32, 16), (33, 64), (100, 98), (257, 300)]
ROWS = [1, 2, 11, 12, 13, 40]


def _expected(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    product = x.double() @ weight.double().T
    return product if bias is None else product + bias.double()


def _close(ours: Tensor, expected: Tensor, dtype: torch.dtype) -> None:
    tolerance = 1e-5 if dtype == torch.float32 else 2 * torch.finfo(dtype).eps
    torch.testing.assert_close(ours.double(), expected, atol=tolerance * expected.abs().max().item(), rtol=tolerance)


def _best(weight: Tensor) -> Tensor | PackedWeight:
    packed = pack_weight(weight)
    return weight if packed is None else packed


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("has_bias", [False, True])
def test_best_form_of_a_weight_gives_its_products(dtype: torch.dtype, size: tuple[int, int], has_bias: bool) -> None:
    weight, bias = torch.randn(size).to(dtype), torch.randn(size[0]).to(dtype) if has_bias else None
    form = _best(weight)
    for num_rows in ROWS:
        x = torch.randn(num_rows, size[1]).to(dtype)
        ours = linear(x, form, bias, dtype)
        assert ours.dtype == dtype
        _close(ours, _expected(x, weight, bias), dtype)


@pytest.mark.parametrize("dtype", DTYPES)
def test_results_can_be_asked_for_in_float32(dtype: torch.dtype) -> None:
    weight, x = torch.randn(70, 40).to(dtype), torch.randn(3, 40).to(dtype)
    ours = linear(x, _best(weight), None, torch.float32)
    assert ours.dtype == torch.float32
    _close(ours, _expected(x, weight, None), dtype)


@pytest.mark.parametrize("threads", [1, 3])
def test_many_outputs_are_shared_by_threads(threads: int) -> None:
    weight, x, before = torch.randn(2049, 512), torch.randn(5, 512), torch.get_num_threads()
    torch.set_num_threads(threads)
    ours = linear(x, _best(weight), None, torch.float32)
    torch.set_num_threads(before)
    _close(ours, _expected(x, weight, None), torch.float32)


def test_not_a_number_shows_in_its_own_row_alone() -> None:
    x = torch.randn(14, 32)
    x[5, 7] = torch.nan
    ours = linear(x, _best(torch.randn(40, 32)), None, torch.float32)
    assert ours[5].isnan().all()
    assert ours[[row for row in range(14) if row != 5]].isfinite().all()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("size", SIZES)
def test_rows_of_a_packed_weight_are_what_they_were(dtype: torch.dtype, size: tuple[int, int]) -> None:
    weight = torch.randn(size).to(dtype)
    packed = pack_weight(weight, has_rows=True)
    row_ids = torch.tensor([size[0] - 1, 0, size[0] // 2, 0])
    assert torch.equal(embedding(row_ids, weight if packed is None else packed, dtype), weight[row_ids])


def test_a_weight_of_the_kernel_is_not_used_where_only_torch_may_compute(kernels: str) -> None:
    packed = pack_weight(torch.randn(8, 4))
    assert (packed is None) == (kernels == "torch")


def test_odd_rows_of_bfloat16_are_left_to_others() -> None:
    weight, x = torch.randn(33, 7).bfloat16(), torch.randn(4, 7).bfloat16()
    _close(linear(x, _best(weight), None, torch.bfloat16), _expected(x, weight, None), torch.bfloat16)


@pytest.mark.parametrize("num_rows", [1, 32, 100])
def test_onednn_gives_the_products_of_what_it_packed(num_rows: int) -> None:
    weight, bias, x = torch.randn(96, 64).bfloat16(), torch.randn(96).bfloat16(), torch.randn(num_rows, 64).bfloat16()
    assert onednn.can_pack(weight)
    ours = linear(x, onednn.pack(weight), bias, torch.bfloat16)
    _close(ours, _expected(x, weight, bias), torch.bfloat16)
