"""A replica without a model, which does what files in the folder `model.path` tell it.

REPLICA.refuse   CheckpointError with the file's text while it is built      REPLICA.sick   failure() gives the text
REPLICA.crash    the process ends while it starts                            REPLICA.pid    written by the replica
REPLICA.streams  how many requests it holds                                  REPLICA.role   written when it changes
A name without generation, such as decode-0, stands for every generation of the slot; `RANK:` may stand before it.
"""

import logging
import os
from pathlib import Path

from kvasir_cluster.spec import Rendezvous
from kvasir_protocol.config import ReplicaConfig
from kvasir_protocol.errors import CheckpointError
from kvasir_protocol.view import ReplicaInfo, Role, StartPhase


class FakeReplica:
    start_phases = (StartPhase("weights", 0.25),)

    def __init__(self, config: ReplicaConfig, rank: int) -> None:
        self._orders = Path(config.model.path)
        self._name = f"{rank}:{config.replica_id}"
        self._segment = Path(f"/dev/shm/{config.segment_prefix}-{config.replica_id}-{rank}")
        if (text := self._order("refuse")) is not None:
            raise CheckpointError(text)
        self.endpoint = f"tcp://127.0.0.1:9/{os.getpid()}"
        self.info = ReplicaInfo(
            replica_id=config.replica_id,
            role=config.role,
            model=config.model.served_name,
            vocab_size=2,
            max_sequence_tokens=2,
            page_size=1,
            num_pages=1,
            process_id=os.getpid(),
            host=config.host,
        )

    def _order(self, kind: str) -> str | None:
        rank, _, replica_id = self._name.partition(":")
        slot = replica_id.partition(".")[0]
        for name in (self._name, f"{rank}:{slot}", replica_id, slot):
            path = self._orders / f"{name}.{kind}"
            if path.exists():
                return path.read_text()
        return None

    def start(self) -> None:
        (self._orders / f"{self._name}.pid").write_text(str(os.getpid()))
        if self._order("crash") is not None:
            os._exit(3)
        logging.getLogger(__name__).info("%s has started", self._name)
        self._segment.touch()

    @property
    def num_streams(self) -> int:
        return int(self._order("streams") or 0)

    def change_role(self, role: Role) -> None:
        (self._orders / f"{self._name}.role").write_text(role)

    def failure(self) -> str | None:
        return self._order("sick")

    def stop(self) -> None:
        self._segment.unlink(missing_ok=True)
        (self._orders / f"{self._name}.stopped").touch()


def build_fake(config: ReplicaConfig, secret: bytes, rank: int, rendezvous: Rendezvous) -> FakeReplica:
    del secret, rendezvous
    return FakeReplica(config, rank)
