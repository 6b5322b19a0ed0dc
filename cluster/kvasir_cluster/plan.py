"""What to do next, given what is wanted and what is there. Pure: no Ray, no clock, no waiting.

A *slot* is a place in a pool, such as decode-0, and holds one gang at a time. A gang that is lost is
replaced by one with a new id, so that nobody takes the new replica's pages or streams for the old one's:

    decode-0  --lost-->  decode-0.2  --lost-->  decode-0.3
"""

import dataclasses
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal, cast, get_args

from kvasir_protocol.config import PoolConfig
from kvasir_protocol.ids import ReplicaId
from kvasir_protocol.view import Role

MAX_FIRST_STARTS = 3
"""Tries of a gang that has never served: one that crashes three times from the start will crash for ever."""

GangState = Literal["starting", "ready", "failed"]


@dataclass(frozen=True, slots=True)
class Slot:
    role: Role
    index: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Failure:
    """Why a gang is of no use any more. can_heal: starting it again, unchanged, may go better."""

    message: str
    can_heal: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class ObservedGang:
    """One gang as it was found. failure is set when, and only when, state is "failed"."""

    replica_id: ReplicaId
    state: GangState
    failure: Failure | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class SlotMemory:
    """What a slot has been through. ready_at_s: since when its present gang serves; None while it doesn't."""

    last_generation: int = 0
    has_served: bool = False
    ready_at_s: float | None = None
    failures_in_a_row: int = 0
    retry_at_s: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Pacing:
    """Pauses between restarts of one slot: none, then first_pause_s, doubling up to max_pause_s.

    A gang that has served for stable_s wipes the slate.
    """

    first_pause_s: float = 1.0
    max_pause_s: float = 60.0
    stable_s: float = 60.0


@dataclass(frozen=True, slots=True)
class StartGang:
    replica_id: ReplicaId
    role: Role


@dataclass(frozen=True, slots=True)
class StopGang:
    replica_id: ReplicaId
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """Actions in the order to take them. fatal: why the cluster can't come up as it is configured."""

    actions: tuple[StartGang | StopGang, ...] = ()
    fatal: str | None = None


_REPLICA_ID = re.compile(rf"({'|'.join(get_args(Role))})-(\d+)(?:\.(\d+))?")


def name_replica(slot: Slot, generation: int) -> ReplicaId:
    """The id of a slot's gang; the first generation, 1, goes unnamed."""
    suffix = f".{generation}" if generation > 1 else ""
    return ReplicaId(f"{slot.role}-{slot.index}{suffix}")


def parse_replica(replica_id: ReplicaId) -> tuple[Slot, int]:
    """The slot and the generation that name_replica was given."""
    match = _REPLICA_ID.fullmatch(replica_id)
    assert match is not None, f"not a replica id: {replica_id!r}"
    role, index, generation = match.groups()
    return Slot(cast(Role, role), int(index)), int(generation or 1)


def desired_slots(pools: Iterable[PoolConfig]) -> tuple[Slot, ...]:
    """Every place that should hold a serving gang."""
    return tuple(Slot(pool.role, index) for pool in pools for index in range(pool.replicas))


def recall(replica_ids: Iterable[ReplicaId]) -> dict[Slot, SlotMemory]:
    """Memory rebuilt from the ids of all gangs there ever were, so that no id is given out twice.

    Their slots count as having served: whoever waited for the first start may be gone, so nothing is fatal any more.
    """
    memory: dict[Slot, SlotMemory] = {}
    for replica_id in replica_ids:
        slot, generation = parse_replica(replica_id)
        latest = max(generation, memory[slot].last_generation if slot in memory else 0)
        memory[slot] = SlotMemory(last_generation=latest, has_served=True)
    return memory


def remember(
    memory: Mapping[Slot, SlotMemory], gangs: Iterable[ObservedGang], now_s: float, pacing: Pacing
) -> dict[Slot, SlotMemory]:
    """Memory after this look at the gangs. Call once per failure: each one lengthens the pause."""
    updated = dict(memory)
    for gang in gangs:
        slot, generation = parse_replica(gang.replica_id)
        before = updated.get(slot, SlotMemory())
        after = dataclasses.replace(before, last_generation=max(generation, before.last_generation))
        if gang.state == "ready" and before.ready_at_s is None:
            after = dataclasses.replace(after, has_served=True, ready_at_s=now_s)
        elif gang.state == "failed":
            after = _after_failure(after, now_s, pacing)
        updated[slot] = after
    return updated


def _after_failure(memory: SlotMemory, now_s: float, pacing: Pacing) -> SlotMemory:
    was_stable = memory.ready_at_s is not None and now_s - memory.ready_at_s >= pacing.stable_s
    failures = 1 if was_stable else memory.failures_in_a_row + 1
    pause_s = 0.0 if failures == 1 else min(pacing.first_pause_s * 2.0 ** min(failures - 2, 30), pacing.max_pause_s)
    return dataclasses.replace(memory, ready_at_s=None, failures_in_a_row=failures, retry_at_s=now_s + pause_s)


def plan(slots: Iterable[Slot], gangs: Iterable[ObservedGang], memory: Mapping[Slot, SlotMemory], now_s: float) -> Plan:
    """What brings the gangs nearer to one serving gang in each slot. memory already knows of gangs (`remember`)."""
    wanted = tuple(slots)
    occupied: set[Slot] = set()
    stops: list[StopGang] = []
    fatal: str | None = None
    for gang in gangs:
        slot, _ = parse_replica(gang.replica_id)
        if gang.failure is not None:
            stops.append(StopGang(gang.replica_id, gang.failure.message))
            fatal = fatal or _fatal_reason(gang, gang.failure, memory.get(slot, SlotMemory()))
        elif slot not in wanted:
            stops.append(StopGang(gang.replica_id, "no longer wanted"))
        else:
            occupied.add(slot)
    if fatal is not None:
        return Plan(actions=tuple(stops), fatal=fatal)
    starts = [_start(slot, memory.get(slot, SlotMemory()), now_s) for slot in wanted if slot not in occupied]
    return Plan(actions=(*stops, *(start for start in starts if start is not None)))


def _start(slot: Slot, memory: SlotMemory, now_s: float) -> StartGang | None:
    if now_s < memory.retry_at_s:
        return None
    return StartGang(name_replica(slot, memory.last_generation + 1), slot.role)


def _fatal_reason(gang: ObservedGang, failure: Failure, memory: SlotMemory) -> str | None:
    if memory.has_served:
        return None
    if not failure.can_heal:
        return failure.message
    if memory.failures_in_a_row >= MAX_FIRST_STARTS:
        return f"{gang.replica_id} failed to start {memory.failures_in_a_row} times: {failure.message}"
    return None


def describe_phase(slots: Iterable[Slot], gangs: Iterable[ObservedGang]) -> str:
    """What goes on, for a person: "ready", or which slots are still without a serving gang."""
    serving = {parse_replica(gang.replica_id)[0] for gang in gangs if gang.state == "ready"}
    missing = [name_replica(slot, 1) for slot in slots if slot not in serving]
    return f"waiting for {', '.join(missing)}" if missing else "ready"
