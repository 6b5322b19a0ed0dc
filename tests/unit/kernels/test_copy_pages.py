"""Pages copied from one memory to another: each byte of them, and no other."""

import pytest
import torch
from torch import Tensor

from kvasir_kernels.dispatch import copy_pages

SOURCE, TARGET = [6, 0, 3, 4], [1, 4, 2, 3]
UNTOUCHED = [0, 5]

SHAPES = {"a kilobyte a piece": (3, 8, 4, 8), "a few bytes": (1, 3, 1, 5), "pieces of no whole line": (2, 16, 3, 24)}
"""Layers, tokens of a page, heads, numbers of a head."""


def memory(shape: tuple[int, int, int, int], num_pages: int, dtype: torch.dtype = torch.float32) -> Tensor:
    num_layers, page_size, num_heads, head_dim = shape
    return torch.randn(num_layers, 2, num_pages, page_size, num_heads, head_dim).to(dtype)


def assert_copied(source: Tensor, target: Tensor) -> None:
    """Into memory that is NaN everywhere before."""
    target.fill_(torch.nan)
    copy_pages(source, SOURCE, target, TARGET)
    assert torch.equal(target[:, :, TARGET], source[:, :, SOURCE])
    assert bool(target[:, :, UNTOUCHED].isnan().all())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("name", SHAPES)
def test_copied_pages_are_the_same_and_no_other_is_touched(name: str, dtype: torch.dtype) -> None:
    assert_copied(memory(SHAPES[name], 7, dtype), memory(SHAPES[name], 6, dtype))


def test_pages_of_eight_bits_are_copied_bit_by_bit() -> None:
    codes = torch.arange(7 * 2 * 64, dtype=torch.uint8).view(1, 2, 7, 4, 2, 8).view(torch.float8_e4m3fn)
    target = torch.zeros_like(codes)
    copy_pages(codes, SOURCE, target, TARGET)
    assert torch.equal(target.view(torch.uint8)[:, :, TARGET], codes.view(torch.uint8)[:, :, SOURCE])


@pytest.mark.parametrize("num_heads", [1, 2])
def test_some_layers_and_heads_of_pages_are_copied_to_others(num_heads: int) -> None:
    source, target = memory((4, 8, 4, 32), 7), memory((3, 8, 3, 32), 6).fill_(torch.nan)
    read, written = source[1:3, ..., 2 : 2 + num_heads, :], target[1:, ..., 1 : 1 + num_heads, :]
    assert_copied(read, written)
    assert bool(target[0].isnan().all()) and bool(target[..., 0, :].isnan().all())


def test_memory_in_which_pages_come_first_is_copied_too() -> None:
    assert_copied(memory((3, 8, 4, 8), 7), torch.empty(6, 3, 2, 8, 4, 8).movedim(0, 2))


def test_memory_in_which_heads_come_first_is_copied_too() -> None:
    assert_copied(torch.randn(3, 2, 7, 4, 8, 8).transpose(3, 4), memory((3, 8, 4, 8), 6))


def test_neighbours_are_copied_as_well_as_others() -> None:
    source, target = memory((3, 8, 4, 8), 6), memory((3, 8, 4, 8), 6)
    copy_pages(source, range(6), target, range(6))
    assert torch.equal(source, target)


def test_no_pages_are_none_copied() -> None:
    source, target = memory((3, 8, 4, 8), 6), memory((3, 8, 4, 8), 6)
    before = target.clone()
    copy_pages(source, [], target, [])
    assert torch.equal(target, before)


@pytest.mark.parametrize("page", [-1, 6])
def test_kernel_writes_to_no_page_that_is_none(kernels: str, page: int) -> None:
    if kernels == "torch":
        pytest.skip("it never writes outside of the memory that it is given")
    with pytest.raises(IndexError):
        copy_pages(memory((3, 8, 4, 8), 7), [0], memory((3, 8, 4, 8), 6), [page])
