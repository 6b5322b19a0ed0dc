"""Real replicas in this process, on a small random checkpoint."""

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from kvasir_protocol.config import EngineConfig, HandoverConfig, ModelConfig, ReplicaConfig, TransportName
from kvasir_protocol.ids import ReplicaId
from kvasir_protocol.view import Role
from kvasir_workers.replica import Replica
from tests.checkpoints import make_checkpoint

SEGMENT_PREFIX = f"kvasir-test-{os.getpid()}"
SECRET = b"s" * 32
StartReplica = Callable[..., Replica]


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_checkpoint(tmp_path_factory.mktemp("llama"), "LlamaForCausalLM")


@pytest.fixture
def start_replica(checkpoint: Path) -> Iterator[StartReplica]:
    """start_replica(role, transport=…, ranks=(tp, pp), **engine settings) -> a replica, then stopped and audited."""
    replicas: list[Replica] = []

    def start(
        role: Role,
        transport: TransportName = "auto",
        path: Path = checkpoint,
        ranks: tuple[int, int] = (1, 1),
        **engine: object,
    ) -> Replica:
        config = ReplicaConfig(
            replica_id=ReplicaId(f"{role}-{len(replicas)}"),
            role=role,
            model=ModelConfig(path=str(path), served_name="test", dtype="float32"),
            engine=EngineConfig(**{"page_size": 4, "max_num_seqs": 8, "max_num_batched_tokens": 16, **engine}),  # type: ignore[arg-type]
            handover=HandoverConfig(transport=transport),
            tensor_parallel_size=ranks[0],
            pipeline_parallel_size=ranks[1],
            segment_prefix=SEGMENT_PREFIX,
        )
        replica = Replica(config, SECRET)
        replicas.append(replica)
        replica.start()
        return replica

    yield start
    for replica in replicas:
        assert replica.failure() is None
        replica.stop()
    assert not list(Path("/dev/shm").glob(f"{SEGMENT_PREFIX}-*"))
