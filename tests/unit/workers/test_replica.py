"""A whole replica in this process: its segment's name, and what it reports when a thread dies."""

import os
import threading
import time
from pathlib import Path

import pytest

from kvasir_protocol.config import EngineConfig, HandoverConfig, ModelConfig, ReplicaConfig
from kvasir_protocol.errors import ConfigError
from kvasir_protocol.ids import ReplicaId
from kvasir_workers.kv.page_memory import SHARED_MEMORY
from kvasir_workers.replica import Replica
from tests.checkpoints import make_checkpoint
from tests.mapped_segments import mapped_bytes

PREFIX = f"kvasir-test-replica-{os.getpid()}"
SECRET = b"s" * 32

PAGES_BYTES = 2**22
"""A whole number of this checkpoint's pages."""

DEADLINE_S = 30.0


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_checkpoint(tmp_path_factory.mktemp("llama"), "LlamaForCausalLM", num_hidden_layers=1)


def config(checkpoint: Path, port: int = 0, **engine: object) -> ReplicaConfig:
    """engine: fields of EngineConfig."""
    return ReplicaConfig(
        replica_id=ReplicaId("decode-0"),
        role="decode",
        model=ModelConfig(path=str(checkpoint), served_name="m"),
        engine=EngineConfig(device="cpu", page_size=4, **engine),  # type: ignore[arg-type]
        handover=HandoverConfig(),
        port=port,
        segment_prefix=PREFIX,
    )


def segments() -> set[str]:
    return {path.name for path in SHARED_MEMORY.glob(f"{PREFIX}-*")}


def served_segment(checkpoint: Path) -> str:
    """The segment's name while a replica serves; afterwards none is left."""
    replica = Replica(config(checkpoint), SECRET)
    replica.start()
    (name,) = segments()
    replica.stop()
    assert segments() == set()
    return name


def test_restarted_replica_never_has_a_segment_of_its_old_name(checkpoint: Path) -> None:
    first, second = served_segment(checkpoint), served_segment(checkpoint)
    assert first != second
    assert all(name.startswith(f"{PREFIX}-decode-0-") for name in (first, second))


def test_parts_of_a_start_are_told_in_their_order(checkpoint: Path) -> None:
    replica = Replica(config(checkpoint), SECRET)
    assert [phase.name for phase in replica.start_phases] == ["weights", "warm-up"]
    replica.start()
    replica.stop()
    assert [phase.name for phase in replica.start_phases] == ["weights", "warm-up", "test answer", "memory of pages"]
    assert all(phase.seconds >= 0 for phase in replica.start_phases)


def test_replica_at_rest_maps_the_memory_of_all_its_pages(checkpoint: Path) -> None:
    replica = Replica(config(checkpoint, kv_cache_bytes=PAGES_BYTES), SECRET)
    replica.start()
    (name,) = segments()
    give_up_at = time.monotonic() + DEADLINE_S
    while mapped_bytes(name) < PAGES_BYTES:
        assert time.monotonic() < give_up_at, f"{mapped_bytes(name)} bytes are mapped"
    replica.stop()


def test_replica_that_cannot_listen_leaves_nothing(checkpoint: Path) -> None:
    replica = Replica(config(checkpoint), SECRET)
    replica.start()
    before = segments()
    with pytest.raises(ConfigError, match="can't listen"):
        Replica(config(checkpoint, port=int(replica.endpoint.rsplit(":", 1)[1])), SECRET)
    after = segments()
    replica.stop()
    assert before == after


def test_replica_that_never_served_can_be_stopped(checkpoint: Path) -> None:
    replica = Replica(config(checkpoint), SECRET)
    replica.stop()
    replica.stop()
    assert segments() == set()


def test_disk_that_can_not_be_used_leaves_nothing(checkpoint: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    tiers = {"host_cache_bytes": 2**20, "disk_cache_bytes": 2**20, "disk_cache_path": str(tmp_path / "file")}
    with pytest.raises(ConfigError, match="disk_cache_path"):
        Replica(config(checkpoint, **tiers), SECRET)
    assert segments() == set()


def test_disk_thread_ends_with_its_replica(checkpoint: Path, tmp_path: Path) -> None:
    tiers = {"host_cache_bytes": 2**20, "disk_cache_bytes": 2**20, "disk_cache_path": str(tmp_path)}
    replica = Replica(config(checkpoint, **tiers), SECRET)
    replica.start()
    names = {thread.name for thread in threading.enumerate()}
    replica.stop()
    assert "kv-disk" in names
    assert "kv-disk" not in {thread.name for thread in threading.enumerate()}


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
@pytest.mark.parametrize("part", ["_server", "_pusher"])
def test_dead_thread_is_a_failure_of_the_replica(checkpoint: Path, part: str) -> None:
    replica = Replica(config(checkpoint), SECRET)
    replica.start()
    before = replica.failure()
    dying = getattr(replica, part)
    dying._thread.post(lambda: 1 / 0 and None)
    dying._thread._thread.join(10)
    after = replica.failure()
    replica.stop()
    assert before is None
    assert after is not None
    assert "died" in after
    assert replica.failure() is None
