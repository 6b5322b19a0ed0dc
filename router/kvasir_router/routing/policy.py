"""Choose the replicas for a request. Values in, a value out; nothing here waits or sends."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, assert_never

from kvasir_protocol.config import RoutingPolicyName
from kvasir_protocol.errors import ServiceUnavailable
from kvasir_protocol.ids import ReplicaId
from kvasir_router.routing.break_even import MOST_SHARED, share_held_up, weigh
from kvasir_router.routing.load import ReplicaLoad


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestShape:
    """What of a request bears on where it should go: tokens to compute before the first new one, and new ones."""

    num_prompt_tokens: int
    max_tokens: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Route:
    """Who serves: prefill None means that decode computes the prompt itself."""

    prefill: ReplicaId | None
    decode: ReplicaId
    reason: str


class RoutingPolicy(Protocol):
    def choose(self, shape: RequestShape, candidates: Sequence[ReplicaLoad]) -> Route:
        """A route over live candidates. Raises ServiceUnavailable if there are none."""
        ...


@dataclass(frozen=True, slots=True)
class Pools:
    """Candidates by what they may do for one request; prefillers is empty where the finisher does it all."""

    prefillers: tuple[ReplicaLoad, ...]
    finishers: tuple[ReplicaLoad, ...]
    reason: str


def pools_of(candidates: Sequence[ReplicaLoad]) -> Pools:
    """Separate pools where both live; else whoever is left serves whole requests, for every replica can."""
    prefill = tuple(load for load in candidates if load.role == "prefill")
    finishers = tuple(load for load in candidates if load.role != "prefill")
    if not finishers:
        return Pools((), prefill, "no decode replica is alive, prefill serves whole requests")
    if not prefill:
        return Pools((), finishers, "no prefill replica is alive or needed")
    return Pools(prefill, finishers, "separate pools")


def _route(shape: RequestShape, prefill: ReplicaLoad | None, finisher: ReplicaLoad, reason: str) -> Route:
    """A mixed replica never takes another's pages: it prefills what it decodes. One token needs no decode replica."""
    if prefill is not None and shape.max_tokens == 1:
        return Route(prefill=None, decode=prefill.replica_id, reason=f"one token, {reason}")
    if finisher.role != "decode":
        prefill = None
    return Route(prefill=prefill.replica_id if prefill else None, decode=finisher.replica_id, reason=reason)


def _require_candidates(candidates: Sequence[ReplicaLoad]) -> None:
    if not candidates:
        raise ServiceUnavailable("no replica is up; see /health for what the cluster is doing")


class LeastLoaded:
    """The replica with the fewest requests; of equals, the one with the most free pages."""

    def choose(self, shape: RequestShape, candidates: Sequence[ReplicaLoad]) -> Route:
        _require_candidates(candidates)
        pools = pools_of(candidates)
        prefill = min(pools.prefillers, key=_busyness, default=None)
        return _route(shape, prefill, min(pools.finishers, key=_busyness), f"least loaded, {pools.reason}")


def _busyness(load: ReplicaLoad) -> tuple[int, float, str]:
    return load.num_streams, load.page_usage, load.replica_id


def _line_first(load: ReplicaLoad) -> tuple[int, int, float, str]:
    return (load.prefill_tokens, *_busyness(load))


class Conditional:
    """With separate pools: as in one mixed pool while prompts hold up few tokens; else the decode replica prefills
    itself where that delays everybody less. As LeastLoaded without separate pools."""

    def choose(self, shape: RequestShape, candidates: Sequence[ReplicaLoad]) -> Route:
        _require_candidates(candidates)
        pools = pools_of(candidates)
        finisher = min(pools.finishers, key=_busyness)
        prefill = min(pools.prefillers, key=_line_first, default=None)
        if prefill is None or finisher.role != "decode" or shape.max_tokens == 1:
            return _route(shape, prefill, finisher, f"conditional, {pools.reason}")
        held_up = share_held_up(candidates)
        if held_up is not None and held_up <= MOST_SHARED:
            anybody = min(candidates, key=_line_first).replica_id
            return Route(prefill=None, decode=anybody, reason=f"conditional, prompts hold up {held_up:.2%} of tokens")
        verdict = weigh(shape.num_prompt_tokens, prefill, finisher)
        chosen = None if verdict.decode_prefills else prefill
        return _route(shape, chosen, finisher, f"conditional, {verdict.reason}")


class RoundRobin:
    """Each replica in turn, in the order of their ids."""

    def __init__(self) -> None:
        self._num_chosen = 0

    def choose(self, shape: RequestShape, candidates: Sequence[ReplicaLoad]) -> Route:
        _require_candidates(candidates)
        pools = pools_of(candidates)
        turn, self._num_chosen = self._num_chosen, self._num_chosen + 1
        prefill = _in_turn(pools.prefillers, turn) if pools.prefillers else None
        return _route(shape, prefill, _in_turn(pools.finishers, turn), f"round robin, {pools.reason}")


def _in_turn(loads: Sequence[ReplicaLoad], turn: int) -> ReplicaLoad:
    return sorted(loads, key=lambda load: load.replica_id)[turn % len(loads)]


def make_policy(name: RoutingPolicyName) -> RoutingPolicy:
    match name:
        case "least-loaded":
            return LeastLoaded()
        case "round-robin":
            return RoundRobin()
        case "conditional":
            return Conditional()
        case _:
            assert_never(name)
