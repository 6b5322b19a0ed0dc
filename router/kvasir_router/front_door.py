"""The parts of a running router, joined for the routes: a front door for each model, and one house around them."""

import asyncio
import importlib.metadata
import time
from dataclasses import dataclass, field

from prometheus_client import CollectorRegistry

from kvasir_protocol.errors import InvalidRequest, ModelNotFound
from kvasir_protocol.view import ClusterView
from kvasir_router.dispatch import Dispatcher
from kvasir_router.fleet import Fleet
from kvasir_router.limits import InflightLimit
from kvasir_router.metrics import FrontDoorMetrics
from kvasir_router.tokenise import TextCodec

VERSION = importlib.metadata.version("kvasir")

UNLIMITED_TOKENS = 2**31 - 1


@dataclass(frozen=True, slots=True, kw_only=True)
class FrontDoor:
    """All that serves one model; limit is that of the house."""

    served_name: str
    codec: TextCodec
    fleet: Fleet
    dispatcher: Dispatcher
    limit: InflightLimit
    metrics: FrontDoorMetrics

    @property
    def context_tokens(self) -> int:
        """Prompt and answer together: what every live replica holds, or before any is up, what the model allows."""
        return self.fleet.context_tokens() or self.codec.context_tokens or UNLIMITED_TOKENS


@dataclass(frozen=True, slots=True, kw_only=True)
class House:
    """doors: one for each model. created_at: Unix time in seconds, shown as the models' age; started_at: of the
    monotonic clock."""

    doors: tuple[FrontDoor, ...]
    limit: InflightLimit
    registry: CollectorRegistry
    created_at: int = field(default_factory=lambda: int(time.time()))
    started_at: float = field(default_factory=time.monotonic)

    def door(self, name: str | None) -> FrontDoor:
        """That of the model of this name. A caller who names none gets the only one, if there is only one.

        Raises ModelNotFound, or InvalidRequest where a name is needed.
        """
        known = ", ".join(repr(door.served_name) for door in self.doors)
        if name is None and len(self.doors) > 1:
            raise InvalidRequest(f"say which model: {known}", "model")
        found = next((door for door in self.doors if name in (None, door.served_name)), None)
        if found is None:
            are = "is" if len(self.doors) == 1 else "are"
            raise ModelNotFound(f"the model {name!r} is not served here; {known} {are}", "model")
        return found

    @property
    def context_tokens(self) -> int:
        """Of the model with the longest context."""
        return max(door.context_tokens for door in self.doors)

    def apply(self, view: ClusterView) -> None:
        """Each door's fleet is those of the view that serve its model."""
        for door in self.doors:
            door.fleet.apply(view.of_model(door.served_name))

    async def close(self) -> None:
        await asyncio.gather(*(door.fleet.close() for door in self.doors))
