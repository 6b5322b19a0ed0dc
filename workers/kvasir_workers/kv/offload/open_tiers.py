"""Sets the tiers' memory and file aside, and measures for the first time what they cost."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from kvasir_protocol.config import EngineConfig
from kvasir_protocol.errors import ConfigError
from kvasir_protocol.ids import PageHash, PageIndex
from kvasir_workers.kv.offload.costs import PriceTag, Rate
from kvasir_workers.kv.offload.disk_tier import DiskTier
from kvasir_workers.kv.offload.disk_worker import DiskThread
from kvasir_workers.kv.offload.host_tier import HostTier
from kvasir_workers.kv.offload.moves import HostSlot, Moves, PageRestore, PageSave
from kvasir_workers.kv.offload.page_file import RECORD_OVERHEAD_BYTES, CorruptPage, PageFile
from kvasir_workers.kv.offload.page_mover import PageMover
from kvasir_workers.kv.offload.tier_log import TierLog
from kvasir_workers.kv.offload.tiers import KvTiers
from kvasir_workers.kv.prefix_tree import PageWatcher

_NUM_TRIALS = 3
"""Of a page at the start; the first touches its memory for the first time and is not counted."""


@dataclass(frozen=True, slots=True)
class OpenTiers:
    """tiers plan, mover executes. `tiers.close()` gives the disk back."""

    tiers: KvTiers
    mover: PageMover


def open_tiers(pages: Tensor, config: EngineConfig, watcher: PageWatcher | None = None) -> OpenTiers | None:
    """Tiers below these pages ([L, 2, N, P, K, D], nothing in use yet), or None if none are wanted.

    Raises ConfigError if the disk's path can't be used or a tier is too small for a page.
    """
    if not config.host_cache_bytes:
        return None
    num_layers, two, _, page_size, num_kv_heads, head_dim = pages.shape
    page_bytes = pages[:, :, 0].nbytes
    num_slots = _num_slots("engine.host_cache_bytes", config.host_cache_bytes, page_bytes)
    buffer = torch.empty(
        (num_slots, num_layers, two, page_size, num_kv_heads, head_dim), dtype=pages.dtype, pin_memory=pages.is_cuda
    )
    mover, log, prices = PageMover(pages, buffer), TierLog(watcher), PriceTag()
    _try_mover(mover, prices)
    host = HostTier(num_slots, log)
    disk = _open_disk(config, buffer, host, log, prices.disk_page) if config.disk_cache_bytes else None
    tiers = KvTiers(host, page_size, prices, log, disk, mover.take_restore_times)
    return OpenTiers(tiers, mover)


def _num_slots(name: str, num_bytes: int, slot_bytes: int) -> int:
    if num_bytes < slot_bytes:
        raise ConfigError(f"{name} of {num_bytes} holds not one page; a page of this model takes {slot_bytes} bytes")
    return num_bytes // slot_bytes


def _try_mover(mover: PageMover, prices: PriceTag) -> None:
    """Bring a page to the host and back a few times."""
    page, slot = PageIndex(0), HostSlot(0)
    moves = Moves(saves=(PageSave(page, slot),), restores=(PageRestore(slot, page),))
    for _ in range(1 + _NUM_TRIALS):
        mover.move(moves)
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    for num_pages, seconds in mover.take_restore_times()[1:]:
        prices.host_page.add(seconds, num_pages)


def _open_disk(config: EngineConfig, buffer: Tensor, host: HostTier, log: TierLog, read_rate: Rate) -> DiskTier:
    assert config.disk_cache_path is not None, "the configuration has checked that"
    page_bytes = buffer[0].nbytes
    num_slots = _num_slots("engine.disk_cache_bytes", config.disk_cache_bytes, page_bytes + RECORD_OVERHEAD_BYTES)
    file = PageFile.create(Path(config.disk_cache_path).expanduser(), page_bytes)
    host_bytes = slot_bytes(buffer)
    _try_file(file, host_bytes(0), read_rate)
    return DiskTier(num_slots, DiskThread(file, host_bytes), host, log, read_rate)


def _try_file(file: PageFile, content: memoryview, read_rate: Rate) -> None:
    name = PageHash(bytes(32))
    try:
        for _ in range(_NUM_TRIALS):
            file.write(0, name, content)
            started_at = time.perf_counter()
            file.read(0, name, content)
            read_rate.add(time.perf_counter() - started_at, 1)
    except (OSError, CorruptPage) as error:
        file.close()
        raise ConfigError(f"engine.disk_cache_path can't be used: {error}") from error


def slot_bytes(buffer: Tensor) -> Callable[[int], memoryview]:
    """The memory of each of a buffer's slots."""
    rows = buffer.view(buffer.shape[0], -1).view(torch.uint8).numpy()
    return lambda slot: memoryview(rows[slot])
