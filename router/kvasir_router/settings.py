"""What a router process is told at its start."""

import re
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from kvasir_protocol.config import RoutingPolicyName
from kvasir_protocol.errors import ConfigError
from kvasir_protocol.ids import ReplicaId
from kvasir_protocol.view import ReplicaAddress, Role

_REPLICA = re.compile(r"(?P<role>prefill|decode|mixed)@(?P<endpoint>tcp://\S+:\d+)")

_BASE_BODY_BYTES = 2**20
_BYTES_PER_TOKEN = 32
_MOST_BODY_BYTES = 32 * 2**20
"""A full context as a list of ids, several times over, and a form for the answer beside it."""


def body_limit_bytes(context_tokens: int) -> int:
    """What a body may weigh: parsing it holds up everybody else's tokens, so it must have a chance to be served."""
    return min(_BASE_BODY_BYTES + _BYTES_PER_TOKEN * context_tokens, _MOST_BODY_BYTES)


@dataclass(frozen=True, slots=True)
class ServedModel:
    """directory: with the model's tokenizer.json and config.json. name: what clients call it."""

    directory: Path
    name: str


@dataclass(frozen=True, slots=True, kw_only=True)
class RouterSettings:
    """Exactly one of replicas and controller_endpoint is given. Without api_keys everybody may ask.

    max_body_bytes None: as much as the longest context of the models calls for.
    """

    models: tuple[ServedModel, ...]
    secret: bytes
    replicas: tuple[ReplicaAddress, ...] = ()
    controller_endpoint: str | None = None
    api_keys: tuple[str, ...] = ()
    policy: RoutingPolicyName = "least-loaded"
    max_inflight_requests: int = 1024
    max_body_bytes: int | None = None

    def __post_init__(self) -> None:
        names = [model.name for model in self.models]
        if not names or len(set(names)) < len(names):
            raise ConfigError(f"a router serves one or more models, each by a name of its own; got {names}")
        if bool(self.replicas) == (self.controller_endpoint is not None):
            raise ConfigError("a router needs either --replicas or --controller, not both")
        if len(names) > 1 and not all(replica.model for replica in self.replicas):
            raise ConfigError(
                f"--replicas can't say which of the models {names} each replica serves; give --controller, or start a "
                "router for each model"
            )
        if self.max_inflight_requests < 1:
            raise ConfigError(f"--max-inflight must be at least 1, got {self.max_inflight_requests}")


def parse_replicas(text: str) -> tuple[ReplicaAddress, ...]:
    """`prefill@tcp://host:port,decode@tcp://…`, named prefill-0, prefill-1, decode-0 … in order."""
    counts: Counter[Role] = Counter()
    addresses = []
    for item in text.split(","):
        match = _REPLICA.fullmatch(item.strip())
        if match is None:
            raise ConfigError(f"--replicas: {item!r} is not ROLE@tcp://HOST:PORT with role prefill, decode or mixed")
        role: Role = match["role"]  # type: ignore[assignment]  # the pattern admits nothing else
        replica_id = ReplicaId(f"{role}-{counts[role]}")
        counts[role] += 1
        addresses.append(ReplicaAddress(replica_id=replica_id, role=role, endpoint=match["endpoint"]))
    return tuple(addresses)


def read_api_keys(path: Path) -> tuple[str, ...]:
    """One key per line; empty lines and those that begin with # don't count. Raises ConfigError if there is none."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise ConfigError(f"can't read the API keys {path}: {error.strerror}") from error
    keys = tuple(line.strip() for line in lines if line.strip() and not line.startswith("#"))
    if not keys:
        raise ConfigError(f"{path} holds no API key; write one per line or leave --api-key-file out")
    return keys
