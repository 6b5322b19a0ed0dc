"""Whole pages, layer by layer, there and back."""

import pytest
import torch

from kvasir_protocol.ids import PageIndex
from kvasir_workers.kv.offload.moves import HostSlot, Moves, PageRestore, PageSave
from kvasir_workers.kv.offload.page_mover import PageMover

DTYPES = [torch.float32, torch.bfloat16, torch.float16]


def save(page: int, slot: int) -> PageSave:
    return PageSave(PageIndex(page), HostSlot(slot))


def restore(slot: int, page: int) -> PageRestore:
    return PageRestore(HostSlot(slot), PageIndex(page))


@pytest.mark.parametrize("dtype", DTYPES)
def test_page_comes_back_bit_by_bit_and_others_stay(dtype: torch.dtype) -> None:
    pages = torch.randn(3, 2, 5, 4, 2, 8).to(dtype)
    buffer = torch.full((2, 3, 2, 4, 2, 8), float("nan"), dtype=dtype)
    before = pages.clone()
    mover = PageMover(pages, buffer)
    mover.move(Moves(saves=(save(1, 1), save(4, 0))))
    pages[:, :, [1, 4]] = float("nan")
    mover.move(Moves(restores=(restore(1, 1), restore(0, 4))))
    assert torch.equal(pages, before)


def test_saves_come_before_restores() -> None:
    pages = torch.randn(1, 2, 2, 4, 1, 8)
    first, second = pages[:, :, 0].clone(), pages[:, :, 1].clone()
    mover = PageMover(pages, torch.empty(2, 1, 2, 4, 1, 8))
    mover.move(Moves(saves=(save(0, 0), save(1, 1)), restores=(restore(0, 1), restore(1, 0))))
    assert torch.equal(pages[:, :, 1], first)
    assert torch.equal(pages[:, :, 0], second)


def test_restores_are_measured_once() -> None:
    mover = PageMover(torch.zeros(1, 2, 2, 4, 1, 8), torch.zeros(1, 1, 2, 4, 1, 8))
    mover.move(Moves(saves=(save(0, 0),)))
    mover.move(Moves(restores=(restore(0, 0), restore(0, 1))))
    ((num_pages, seconds),) = mover.take_restore_times()
    assert (num_pages, seconds > 0) == (2, True)
    assert mover.take_restore_times() == []
