"""What to do next, given what is wanted and what is there. Pure: no Ray, no clock, no waiting.

A *slot* is a place in a pool, such as decode-0, and holds one gang at a time. A gang that is lost is
replaced by one with a new id, so that nobody takes the new replica's pages or streams for the old one's:

    decode-0  --lost-->  decode-0.2  --lost-->  decode-0.3

A gang that its pool has no slot for any more takes a free one of another pool, if it is built as that pool wants: its
role changes, its id and its weights stay.
"""

import dataclasses
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal, cast, get_args

from kvasir_protocol.config import PoolConfig, model_key
from kvasir_protocol.ids import ReplicaId
from kvasir_protocol.view import Role, StartPhase

MAX_FIRST_STARTS = 3
"""Tries of a gang that has never served: one that crashes three times from the start will crash for ever."""

GangState = Literal["starting", "ready", "draining", "failed"]
"""draining: it takes nothing new, and is stopped when it has ended what it has."""

READY = "ready"
"""The phase of a cluster of which every replica serves as it should."""

STOPPING = "stopping"
"""The phase of a cluster that is being taken away."""

ALL_ROLES = frozenset(get_args(Role))


@dataclass(frozen=True, slots=True)
class Slot:
    """model: the key of a model that is not the first."""

    role: Role
    index: int
    model: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Failure:
    """Why a gang is of no use any more. can_heal: starting it again, unchanged, may go better."""

    message: str
    can_heal: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class ObservedGang:
    """One gang as it was found. failure is set when, and only when, state is "failed".

    reassigned: the slot that it has taken instead of the one in its id. fits: roles in whose pools, of its model, it
    can serve as it is built; a gang that doesn't fit the role it has is outdated. start_phases: how it started, once it
    has.
    """

    replica_id: ReplicaId
    state: GangState
    failure: Failure | None = None
    reassigned: Slot | None = None
    fits: frozenset[Role] = ALL_ROLES
    start_phases: tuple[StartPhase, ...] = ()

    @property
    def slot(self) -> Slot:
        """The place that it holds."""
        return self.reassigned or parse_replica(self.replica_id)[0]

    @property
    def is_outdated(self) -> bool:
        return self.slot.role not in self.fits


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


@dataclass(frozen=True, slots=True)
class DrainGang:
    """Let it end what it has, then stop it."""

    replica_id: ReplicaId
    reason: str


@dataclass(frozen=True, slots=True)
class ReassignGang:
    """Let it take a slot of another pool, and that pool's role."""

    replica_id: ReplicaId
    slot: Slot


Action = StartGang | StopGang | DrainGang | ReassignGang


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """Actions in the order to take them. fatal: why the cluster can't come up as it is configured."""

    actions: tuple[Action, ...] = ()
    fatal: str | None = None


_REPLICA_ID = re.compile(rf"(?:([a-z0-9-]+)\.)?({'|'.join(get_args(Role))})-(\d+)(?:\.(\d+))?")


def name_replica(slot: Slot, generation: int) -> ReplicaId:
    """The id of a slot's gang; the first generation, 1, goes unnamed."""
    prefix = f"{slot.model}." if slot.model else ""
    suffix = f".{generation}" if generation > 1 else ""
    return ReplicaId(f"{prefix}{slot.role}-{slot.index}{suffix}")


def parse_replica(replica_id: ReplicaId) -> tuple[Slot, int]:
    """The slot and the generation that name_replica was given."""
    match = _REPLICA_ID.fullmatch(replica_id)
    assert match is not None, f"not a replica id: {replica_id!r}"
    model, role, index, generation = match.groups()
    return Slot(cast(Role, role), int(index), model or ""), int(generation or 1)


def desired_slots(pools: Iterable[PoolConfig]) -> tuple[Slot, ...]:
    """Every place that should hold a serving gang."""
    return tuple(Slot(pool.role, index, model_key(pool.model)) for pool in pools for index in range(pool.replicas))


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
        named, generation = parse_replica(gang.replica_id)
        named_before = updated.get(named, SlotMemory())
        updated[named] = dataclasses.replace(
            named_before, last_generation=max(generation, named_before.last_generation)
        )
        slot = gang.slot
        before = after = updated.get(slot, SlotMemory())
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


def plan(
    slots: Iterable[Slot],
    gangs: Iterable[ObservedGang],
    memory: Mapping[Slot, SlotMemory],
    now_s: float,
    *,
    may_start_new: bool = True,
) -> Plan:
    """What brings the gangs nearer to one serving gang in each slot. memory already knows of gangs (`remember`).

    may_start_new: False once a slot that never served has proved fatal; those that served are still looked after.
    """
    found, wanted = tuple(gangs), tuple(slots)
    failed = [(gang, gang.failure) for gang in found if gang.failure is not None]
    stops = tuple(StopGang(gang.replica_id, failure.message) for gang, failure in failed)
    for gang, failure in failed:
        if fatal := _fatal_reason(gang, failure, memory.get(gang.slot, SlotMemory())):
            return Plan(actions=stops, fatal=fatal)
    alive = [gang for gang in found if gang.state in ("starting", "ready")]
    leaving = {gang.slot for gang in found if gang.state == "draining"}
    spare = [gang for gang in alive if gang.slot not in wanted]
    held = {gang.slot for gang in alive}
    missing = [slot for slot in wanted if slot not in held | leaving]
    moves, missing = _use_spare(spare, missing)
    # A newcomer without a past may need the place of one that leaves; that it had to wait would be fatal.
    starts = [_start(slot, memory, now_s, may_be_new=may_start_new and not leaving) for slot in missing]
    renewal = () if missing or leaving else _renew_one([gang for gang in alive if gang.slot in wanted])
    return Plan(actions=(*stops, *moves, *(start for start in starts if start is not None), *renewal))


def _use_spare(spare: Iterable[ObservedGang], missing: Iterable[Slot]) -> tuple[list[Action], list[Slot]]:
    """Send gangs without a slot to missing ones that they fit, or away; and what is missing then."""
    actions: list[Action] = []
    left = list(missing)
    for gang in spare:
        slot = next((slot for slot in left if slot.model == gang.slot.model and slot.role in gang.fits), None)
        if gang.state != "ready":
            actions.append(StopGang(gang.replica_id, "no longer wanted"))
        elif slot is None:
            actions.append(DrainGang(gang.replica_id, "no longer wanted"))
        else:
            left.remove(slot)
            actions.append(ReassignGang(gang.replica_id, slot))
    return actions, left


def _renew_one(gangs: Iterable[ObservedGang]) -> tuple[Action, ...]:
    """One outdated gang at a time makes room for its successor, and only while all others serve."""
    found = tuple(gangs)
    outdated = [gang for gang in found if gang.is_outdated]
    loading = [gang for gang in found if gang.state == "starting"]
    for gang in outdated:
        if gang in loading:
            return (StopGang(gang.replica_id, "its settings changed"),)
        if not loading:
            return (DrainGang(gang.replica_id, "its settings changed"),)
    return ()


def _start(slot: Slot, memory: Mapping[Slot, SlotMemory], now_s: float, *, may_be_new: bool) -> StartGang | None:
    past = memory.get(slot, SlotMemory())
    if now_s < past.retry_at_s or not (past.has_served or may_be_new):
        return None
    return StartGang(name_replica(slot, past.last_generation + 1), slot.role)


def _fatal_reason(gang: ObservedGang, failure: Failure, memory: SlotMemory) -> str | None:
    if memory.has_served:
        return None
    if not failure.can_heal:
        return failure.message
    if memory.failures_in_a_row >= MAX_FIRST_STARTS:
        return f"{gang.replica_id} failed to start {memory.failures_in_a_row} times: {failure.message}"
    return None


def describe_phase(slots: Iterable[Slot], gangs: Iterable[ObservedGang]) -> str:
    """What goes on, for a person: "ready", or which slots are still without a gang that serves as it should."""
    found = tuple(gangs)
    serving = {gang.slot for gang in found if gang.state == "ready" and not gang.is_outdated}
    missing = [name_replica(slot, 1) for slot in slots if slot not in serving]
    leaving = [gang.replica_id for gang in found if gang.state == "draining"]
    if missing:
        return f"waiting for {', '.join(missing)}"
    return f"draining {', '.join(leaving)}" if leaving else READY
