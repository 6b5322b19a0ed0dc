"""A replica as a process of its own."""

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

import yaml

from kvasir_protocol.config import EngineConfig, HandoverConfig, ModelConfig, ReplicaConfig
from kvasir_protocol.ids import ReplicaId
from kvasir_protocol.sockets import load_or_create_secret
from kvasir_protocol.wire import to_plain
from kvasir_workers.kv.page_memory import SHARED_MEMORY
from tests.wire_client import WireClient


@dataclass(frozen=True, slots=True)
class ReplicaProcess:
    """client: speaks to the process. segments: what it has in shared memory."""

    process: subprocess.Popen[str]
    client: WireClient
    segment_prefix: str

    def segments(self) -> list[Path]:
        return list(SHARED_MEMORY.glob(f"{self.segment_prefix}-*"))


@contextmanager
def replica_process(folder: Path, model: ModelConfig, engine: EngineConfig) -> Iterator[ReplicaProcess]:
    """It serves for the block, and ends with it however the block ends. folder: for its files."""
    config = ReplicaConfig(
        replica_id=ReplicaId("mixed-0"),
        role="mixed",
        model=model,
        engine=engine,
        handover=HandoverConfig(),
        segment_prefix=f"kvasir-test-{os.getpid()}-{folder.name}",
    )
    settings, secret = folder / "replica.yaml", folder / "secret"
    settings.write_text(yaml.safe_dump(to_plain(config)))
    key = load_or_create_secret(secret)
    command = [sys.executable, "-m", "kvasir_workers.replica", "--config", str(settings), "--secret-file", str(secret)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None, "its output is piped"
            line = process.stdout.readline().split()
            assert line, f"it ended with {process.wait()}"
            with closing(WireClient(line[-1], key)) as client:
                yield ReplicaProcess(process, client, config.segment_prefix)
        finally:
            process.kill()
            process.wait()
            for segment in SHARED_MEMORY.glob(f"{config.segment_prefix}-*"):
                segment.unlink()
