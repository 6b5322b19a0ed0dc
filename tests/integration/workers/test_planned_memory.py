"""What `kvasir plan` says that a replica takes, against a replica that has used all of it."""

import json
import subprocess
from itertools import count
from pathlib import Path

import pytest

from kvasir.bench.startup import KVASIR
from kvasir.demo import demo_model_path
from kvasir_protocol.config import EngineConfig, ModelConfig
from kvasir_protocol.ids import RequestId
from kvasir_protocol.request import GenerationRequest, SamplingParams
from tests.replica_process import replica_process
from tests.wire_client import WireClient

MIB = 2**20

PROMPT_TOKENS = 500

SIZES_MIB = (16, 128)


def planned_bytes(pages_bytes: int) -> int:
    """Of a replica without Ray."""
    flags = ["plan", "--device", "cpu", "--kv-cache-memory-bytes", str(pages_bytes), "--json"]
    told = subprocess.run([*KVASIR, *flags], check=True, capture_output=True, text=True)
    replica = json.loads(told.stdout)["replica"]
    parts = ("weight_bytes", "host_cache_bytes", "step_bytes", "process_bytes")
    return sum(replica[part] for part in parts) + replica["num_pages"] * replica["page_bytes"]


def used_bytes(pages_bytes: int, folder: Path) -> int:
    """Physical memory of a replica that has had every page of its own in use."""
    model = ModelConfig(path=str(demo_model_path()), served_name="test")
    engine = EngineConfig(device="cpu", num_threads=1, kv_cache_bytes=pages_bytes)
    with replica_process(folder, model, engine) as replica:
        return _fill(replica.client)


def _fill(client: WireClient) -> int:
    sampling = SamplingParams(max_tokens=1, seed=0, temperature=0, ignore_eos=True)
    for number in count():
        stats = client.settled_stats().stats
        if stats.num_pages * 16 <= number * PROMPT_TOKENS:
            return stats.resident_bytes
        prompt = (3 + number, *range(3, 2 + PROMPT_TOKENS))
        client.generate(
            GenerationRequest(request_id=RequestId(f"r{number}"), prompt_token_ids=prompt, sampling=sampling)
        )
    raise AssertionError("counts for ever")


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> dict[int, tuple[int, int]]:
    """Planned and used bytes by the pages' size in MiB."""
    return {
        size: (planned_bytes(size * MIB), used_bytes(size * MIB, tmp_path_factory.mktemp("replica")))
        for size in SIZES_MIB
    }


@pytest.mark.parametrize("size", SIZES_MIB)
def test_a_replica_takes_what_was_planned(measured: dict[int, tuple[int, int]], size: int) -> None:
    planned, used = measured[size]
    # 5 % on a quiet machine; how much a library has touched of its code is never quite the same.
    assert used == pytest.approx(planned, rel=0.1)


def test_more_pages_take_as_much_more_as_planned(measured: dict[int, tuple[int, int]]) -> None:
    planned, used = (
        large - small for small, large in zip(measured[SIZES_MIB[0]], measured[SIZES_MIB[-1]], strict=True)
    )
    assert used == pytest.approx(planned, rel=0.1)
