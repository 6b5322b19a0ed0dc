"""What a router knows of the cluster: which replicas there are and how to reach them."""

from dataclasses import dataclass, replace
from typing import Literal

from kvasir_protocol.ids import ReplicaId

Role = Literal["prefill", "decode", "mixed"]


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplicaAddress:
    """Where one replica listens and what it is for. endpoint is a ZeroMQ address, such as tcp://10.0.0.7:5601.

    model: its served name; "" where a router was told of replicas by hand, and serves one model.
    """

    replica_id: ReplicaId
    role: Role
    endpoint: str
    model: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class ClusterView:
    """All replicas that may take requests. version grows with every change; phase tells a person what goes on."""

    version: int
    replicas: tuple[ReplicaAddress, ...]
    phase: str = "ready"

    def of_model(self, name: str) -> "ClusterView":
        """The same with only those that serve the model."""
        return replace(self, replicas=tuple(each for each in self.replicas if each.model in ("", name)))


@dataclass(frozen=True, slots=True)
class StartPhase:
    """A part of a replica's start, for a person, and how long it took."""

    name: str
    seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplicaInfo:
    """What a replica says of itself when a router greets it.

    max_sequence_tokens: the longest sequence (prompt and answer) that its context and its pages can hold.
    kv_events_endpoint, kv_replay_endpoint: where it tells what its prefix cache holds (`kv_events.py`), or "".
    """

    replica_id: ReplicaId
    role: Role
    model: str
    vocab_size: int
    max_sequence_tokens: int
    page_size: int
    num_pages: int
    process_id: int
    host: str
    kv_events_endpoint: str = ""
    kv_replay_endpoint: str = ""
