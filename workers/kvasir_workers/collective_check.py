"""Whether processes on several hosts can compute together: one all-reduce among them, timed."""

import os
import time
from dataclasses import dataclass
from datetime import timedelta
from typing import Literal

import torch
import torch.distributed

from kvasir_protocol.errors import ServiceUnavailable

Backend = Literal["gloo", "nccl"]

NUM_VALUES = 2**18
"""1 MiB in float32: what a tensor-parallel layer of a few hundred tokens exchanges."""

TIMEOUT_S = 20.0


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckPlace:
    """One process of the check. endpoint: HOST:PORT of the first; interface: the network card to use."""

    rank: int
    world_size: int
    endpoint: str
    interface: str
    backend: Backend


def time_all_reduce(place: CheckPlace) -> float:
    """Seconds of an all-reduce of 1 MiB, after a first one. Raises ServiceUnavailable if it fails or adds up wrong."""
    os.environ["GLOO_SOCKET_IFNAME"] = os.environ["NCCL_SOCKET_IFNAME"] = place.interface
    device = torch.device("cuda" if place.backend == "nccl" else "cpu")
    try:
        torch.distributed.init_process_group(
            place.backend,
            init_method=f"tcp://{place.endpoint}",
            rank=place.rank,
            world_size=place.world_size,
            timeout=timedelta(seconds=TIMEOUT_S),
        )
        try:
            _all_reduce(place, device)
            return _all_reduce(place, device)
        finally:
            torch.distributed.destroy_process_group()
    except (RuntimeError, ValueError, torch.distributed.DistError) as error:
        reason = str(error).strip().partition("\n")[0]
        raise ServiceUnavailable(f"the {place.backend} all-reduce failed at rank {place.rank}: {reason}") from error


def _all_reduce(place: CheckPlace, device: torch.device) -> float:
    values = torch.full((NUM_VALUES,), float(place.rank + 1), device=device)
    started_at_s = time.perf_counter()
    torch.distributed.all_reduce(values)
    total = float(values[0])
    seconds = time.perf_counter() - started_at_s
    expected = place.world_size * (place.world_size + 1) / 2
    if total != expected or float(values[-1]) != expected:
        raise ServiceUnavailable(f"the {place.backend} all-reduce gave {total} where {expected} was right")
    return seconds
