"""Pages to bytes and back."""

from contextlib import nullcontext

import pytest
import torch

from kvasir_kernels.native.choice import without_native_kernels
from kvasir_protocol.ids import PageIndex
from kvasir_workers.kv.transfer.page_content import (
    copy_pages,
    layout_dtype,
    layout_page_bytes,
    pack_pages,
    page_contents,
    page_places,
    unpack_pages,
)
from tests.unit.workers.kv.transfer.layouts import make_layout, random_pages

DTYPES = ["float32", "bfloat16", "float16"]
SOURCE = [PageIndex(i) for i in (6, 0, 3)]
TARGET = [PageIndex(i) for i in (1, 4, 2)]
UNTOUCHED = [0, 3]


@pytest.mark.parametrize("dtype", DTYPES)
def test_packed_pages_have_the_layouts_size(dtype: str) -> None:
    pages = random_pages(7, getattr(torch, dtype))
    assert len(pack_pages(pages, SOURCE)) == 3 * layout_page_bytes(make_layout(dtype))


@pytest.mark.parametrize("dtype", DTYPES)
def test_unpacked_pages_are_the_packed_ones(dtype: str) -> None:
    source = random_pages(7, getattr(torch, dtype))
    target = torch.full_like(random_pages(5, source.dtype), torch.nan)
    unpack_pages(pack_pages(source, SOURCE), target, TARGET)
    assert torch.equal(target[:, :, TARGET], source[:, :, SOURCE])


@pytest.mark.parametrize("dtype", DTYPES)
def test_copied_pages_are_the_same(dtype: str) -> None:
    source = random_pages(7, getattr(torch, dtype))
    target = torch.full_like(random_pages(5, source.dtype), torch.nan)
    copy_pages(source, SOURCE, target, TARGET)
    assert torch.equal(target[:, :, TARGET], source[:, :, SOURCE])


def test_other_pages_are_left_alone() -> None:
    target = torch.full_like(random_pages(5), torch.nan)
    unpack_pages(pack_pages(random_pages(7), SOURCE), target, TARGET)
    assert bool(target[:, :, UNTOUCHED].isnan().all())


def test_nan_and_infinity_travel_bit_by_bit() -> None:
    source = random_pages(1)
    source.view(-1)[:3] = torch.tensor([torch.nan, torch.inf, -0.0])
    content = pack_pages(source, [PageIndex(0)])
    target = torch.zeros_like(source)
    unpack_pages(content, target, [PageIndex(0)])
    assert pack_pages(target, [PageIndex(0)]) == content


def test_layout_that_names_no_dtype_is_a_broken_invariant() -> None:
    with pytest.raises(AssertionError, match="names dtype 'nn'"):
        layout_dtype(make_layout("nn"))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_places_are_the_pages_memory_in_the_order_of_their_content(dtype: str) -> None:
    pages = random_pages(7).to(layout_dtype(make_layout(dtype)))
    assert b"".join(page_places(pages, SOURCE)) == pack_pages(pages, SOURCE)
    page_places(pages, SOURCE)[0][:] = bytes(len(page_places(pages, SOURCE)[0]))
    assert not pages[0, 0, SOURCE[0]].any()


@pytest.mark.parametrize("step", [1, 160, 479, 5000])
@pytest.mark.parametrize("is_native", [True, False])
def test_contents_are_read_and_written_step_by_step_in_the_same_order(step: int, is_native: bool) -> None:
    source, target = random_pages(7), torch.full_like(random_pages(5), torch.nan)
    with nullcontext() if is_native else without_native_kernels():
        read, written = page_contents(source, SOURCE), page_contents(target, TARGET)
    assert read is not None and written is not None
    while read.num_bytes:
        written.fill(read.take(memoryview(bytearray(step))))
    assert written.num_bytes == 0
    assert torch.equal(target[:, :, TARGET], source[:, :, SOURCE])
    assert bool(target[:, :, UNTOUCHED].isnan().all())


def test_large_pieces_are_read_and_written_whole() -> None:
    """Of more than a kilobyte and of no whole kilobyte: what goes past the caches, and what doesn't."""
    source = torch.randn(2, 2, 6, 16, 3, 40)
    target = torch.full_like(source, torch.nan)
    read, written = page_contents(source, SOURCE[1:]), page_contents(target, TARGET[1:])
    assert read is not None and written is not None
    written.fill(read.take(memoryview(bytearray(read.num_bytes - 64))))
    written.fill(read.take(memoryview(bytearray(1000))))
    assert torch.equal(target[:, :, TARGET[1:]], source[:, :, SOURCE[1:]])


def test_pages_that_lie_in_no_one_memory_have_no_places() -> None:
    assert page_places(random_pages(7)[..., :1], SOURCE) == []
    assert page_contents(random_pages(7)[..., :1], SOURCE) is None


def test_content_may_go_to_room_that_is_larger() -> None:
    pages = random_pages(7)
    assert pack_pages(pages, SOURCE, bytearray(10**5)) == pack_pages(pages, SOURCE)
