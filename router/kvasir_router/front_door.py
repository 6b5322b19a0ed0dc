"""The parts of a running router, joined for the routes."""

import importlib.metadata
import time
from dataclasses import dataclass, field

from prometheus_client import CollectorRegistry

from kvasir_protocol.errors import ModelNotFound
from kvasir_router.dispatch import Dispatcher
from kvasir_router.fleet import Fleet
from kvasir_router.limits import InflightLimit
from kvasir_router.metrics import FrontDoorMetrics
from kvasir_router.tokenise import TextCodec

VERSION = importlib.metadata.version("kvasir")

UNLIMITED_TOKENS = 2**31 - 1


@dataclass(frozen=True, slots=True, kw_only=True)
class FrontDoor:
    """created_at: Unix time in seconds, shown as the model's age; started_at: of the monotonic clock."""

    served_name: str
    codec: TextCodec
    fleet: Fleet
    dispatcher: Dispatcher
    limit: InflightLimit
    metrics: FrontDoorMetrics
    registry: CollectorRegistry
    created_at: int = field(default_factory=lambda: int(time.time()))
    started_at: float = field(default_factory=time.monotonic)

    @property
    def context_tokens(self) -> int:
        """Prompt and answer together: what every live replica holds, or before any is up, what the model allows."""
        return self.fleet.context_tokens() or self.codec.context_tokens or UNLIMITED_TOKENS

    def check_model(self, name: str | None) -> None:
        """A caller who names no model gets the one that is served. Raises ModelNotFound."""
        if name is not None and name != self.served_name:
            raise ModelNotFound(f"the model {name!r} is not served here; {self.served_name!r} is", "model")
