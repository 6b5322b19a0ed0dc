"""Tiers of real memory and a real file."""

from pathlib import Path

import pytest
import torch

from kvasir_protocol.config import EngineConfig
from kvasir_protocol.errors import ConfigError
from kvasir_workers.kv.offload.open_tiers import open_tiers, slot_bytes
from kvasir_workers.kv.offload.page_file import RECORD_OVERHEAD_BYTES

PAGES = torch.zeros(2, 2, 3, 4, 1, 8)
PAGE_BYTES = 2 * 2 * 4 * 8 * 4


def config(host_pages: float, disk_pages: float = 0, path: Path | None = None) -> EngineConfig:
    return EngineConfig(
        page_size=4,
        host_cache_bytes=int(host_pages * PAGE_BYTES),
        disk_cache_bytes=int(disk_pages * (PAGE_BYTES + RECORD_OVERHEAD_BYTES)),
        disk_cache_path=str(path) if path is not None else None,
    )


def test_without_a_budget_there_are_no_tiers() -> None:
    assert open_tiers(PAGES, config(0)) is None


def test_budgets_are_filled_with_whole_pages(tmp_path: Path) -> None:
    opened = open_tiers(PAGES, config(5.9, 7.9, tmp_path))
    assert opened is not None
    assert opened.tiers.disk is not None
    assert (opened.tiers.host.slots.num_slots, opened.tiers.disk.slots.num_slots) == (5, 7)
    opened.tiers.close()


def test_all_but_computing_is_measured_before_the_first_step(tmp_path: Path) -> None:
    opened = open_tiers(PAGES, config(1, 1, tmp_path))
    assert opened is not None
    prices = opened.tiers.prices.prices()
    assert prices.host_page_s is not None
    assert prices.disk_page_s is not None
    assert prices.token_s is None
    opened.tiers.close()


def test_measuring_leaves_the_pages_as_they_were() -> None:
    pages = torch.randn(2, 2, 3, 4, 1, 8)
    before = pages.clone()
    open_tiers(pages, config(1))
    assert torch.equal(pages, before)


def test_budget_below_a_page_is_refused_with_the_numbers(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=f"host_cache_bytes of {PAGE_BYTES // 2} holds not one page.*{PAGE_BYTES}"):
        open_tiers(PAGES, config(0.5))
    with pytest.raises(ConfigError, match=r"disk_cache_bytes of .* holds not one page"):
        open_tiers(PAGES, config(1, 0.5, tmp_path))


def test_path_that_can_not_be_used_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match="disk_cache_path"):
        open_tiers(PAGES, config(1, 1, tmp_path / "file"))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_bytes_of_a_slot_are_its_memory(dtype: torch.dtype) -> None:
    buffer = torch.zeros((3, 2, 4), dtype=dtype)
    memory = slot_bytes(buffer)(1)
    memory[:] = bytes(range(buffer[0].nbytes))
    assert bytes(buffer[1].view(torch.uint8).flatten().tolist()) == bytes(range(buffer[0].nbytes))
    assert not buffer[[0, 2]].view(torch.uint8).any()
