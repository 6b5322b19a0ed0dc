import dataclasses

from kvasir_cluster.plan import (
    DrainGang,
    Failure,
    ObservedGang,
    Pacing,
    Plan,
    ReassignGang,
    Slot,
    SlotMemory,
    StartGang,
    StopGang,
    describe_phase,
    desired_slots,
    name_replica,
    parse_replica,
    plan,
    recall,
    remember,
)
from kvasir_protocol.config import PoolConfig
from kvasir_protocol.ids import ReplicaId

PREFILL, DECODE = Slot("prefill", 0), Slot("decode", 0)
PACING = Pacing(first_pause_s=1.0, max_pause_s=8.0, stable_s=60.0)


def gang(replica_id, state="ready", failure=None, **others):
    return ObservedGang(replica_id=ReplicaId(replica_id), state=state, failure=failure, **others)


def failed(replica_id, message="its process died", can_heal=True):
    return gang(replica_id, "failed", Failure(message=message, can_heal=can_heal))


def test_replica_names_tell_slot_and_generation():
    assert name_replica(Slot("decode", 3), 1) == "decode-3"
    assert name_replica(Slot("decode", 3), 12) == "decode-3.12"
    assert parse_replica(ReplicaId("decode-3")) == (Slot("decode", 3), 1)
    assert parse_replica(ReplicaId("decode-3.12")) == (Slot("decode", 3), 12)


def test_every_replica_of_every_pool_has_a_slot():
    pools = (PoolConfig(role="prefill"), PoolConfig(role="decode", replicas=2))
    assert desired_slots(pools) == (PREFILL, DECODE, Slot("decode", 1))


def test_empty_cluster_starts_one_gang_per_slot():
    assert plan([PREFILL, DECODE], [], {}, 0.0).actions == (
        StartGang(ReplicaId("prefill-0"), "prefill"),
        StartGang(ReplicaId("decode-0"), "decode"),
    )


def test_starting_and_ready_gangs_are_left_alone():
    assert plan([PREFILL, DECODE], [gang("prefill-0", "starting"), gang("decode-0.4")], {}, 0.0) == Plan()


def test_failed_gang_is_stopped_and_its_slot_filled_under_a_new_id():
    gangs = [gang("prefill-0"), failed("decode-0")]
    memory = remember(remember({}, [gang("decode-0")], 0.0, PACING), gangs, 5.0, PACING)
    assert plan([PREFILL, DECODE], gangs, memory, 5.0).actions == (
        StopGang(ReplicaId("decode-0"), "its process died"),
        StartGang(ReplicaId("decode-0.2"), "decode"),
    )


def test_pauses_between_restarts_double_up_to_the_cap():
    memory: dict[Slot, SlotMemory] = {}
    pauses = []
    for generation in range(1, 8):
        memory = remember(memory, [failed(name_replica(DECODE, generation))], 100.0, PACING)
        pauses.append(memory[DECODE].retry_at_s - 100.0)
    assert pauses == [0, 1, 2, 4, 8, 8, 8]


def test_slot_waits_out_its_pause():
    memory = {DECODE: SlotMemory(last_generation=2, has_served=True, retry_at_s=10.0)}
    assert plan([DECODE], [], memory, 9.9).actions == ()
    assert plan([DECODE], [], memory, 10.0).actions == (StartGang(ReplicaId("decode-0.3"), "decode"),)


def test_gang_that_served_long_enough_wipes_the_slate():
    memory = {DECODE: SlotMemory(last_generation=1, failures_in_a_row=5)}
    memory = remember(memory, [gang("decode-0")], 0.0, PACING)
    assert remember(memory, [failed("decode-0")], 59.0, PACING)[DECODE].failures_in_a_row == 6
    assert remember(memory, [failed("decode-0")], 60.0, PACING)[DECODE].failures_in_a_row == 1


def test_hopeless_failure_before_the_first_service_is_fatal():
    gangs = [gang("prefill-0", "starting"), failed("decode-0", "no such folder", can_heal=False)]
    decision = plan([PREFILL, DECODE], gangs, remember({}, gangs, 0.0, PACING), 0.0)
    assert decision.fatal == "no such folder"
    assert not any(isinstance(action, StartGang) for action in decision.actions)


def test_hopeless_failure_after_service_is_tried_again():
    memory = remember({}, [gang("decode-0")], 0.0, PACING)
    gangs = [failed("decode-0", "not enough memory", can_heal=False)]
    decision = plan([DECODE], gangs, remember(memory, gangs, 1.0, PACING), 1.0)
    assert decision.fatal is None
    assert decision.actions[-1] == StartGang(ReplicaId("decode-0.2"), "decode")


def test_third_crash_before_the_first_service_is_fatal():
    memory: dict[Slot, SlotMemory] = {}
    verdicts = []
    for generation in (1, 2, 3):
        gangs = [failed(name_replica(DECODE, generation))]
        memory = remember(memory, gangs, 0.0, PACING)
        verdicts.append(plan([DECODE], gangs, memory, 0.0).fatal)
    assert verdicts == [None, None, "decode-0.3 failed to start 3 times: its process died"]


def test_gang_without_a_slot_may_end_what_it_has():
    assert plan([DECODE], [gang("decode-0"), gang("decode-1")], {}, 0.0).actions == (
        DrainGang(ReplicaId("decode-1"), "no longer wanted"),
    )


def test_gang_without_a_slot_that_still_loads_is_stopped_at_once():
    assert plan([DECODE], [gang("decode-0"), gang("decode-1", "starting")], {}, 0.0).actions == (
        StopGang(ReplicaId("decode-1"), "no longer wanted"),
    )


def test_spare_gang_takes_a_slot_of_another_pool():
    slots = [PREFILL, DECODE, Slot("decode", 1)]
    gangs = [gang("prefill-0"), gang("prefill-1"), gang("decode-0")]
    assert plan(slots, gangs, {}, 0.0).actions == (ReassignGang(ReplicaId("prefill-1"), Slot("decode", 1)),)


def test_spare_gang_that_is_built_otherwise_takes_no_slot():
    slots = [DECODE, Slot("decode", 1)]
    gangs = [gang("decode-0"), gang("prefill-1", fits=frozenset({"prefill"}))]
    assert plan(slots, gangs, {}, 0.0).actions == (
        DrainGang(ReplicaId("prefill-1"), "no longer wanted"),
        StartGang(ReplicaId("decode-1"), "decode"),
    )


def test_reassigned_gang_holds_its_new_slot_and_frees_its_old_one():
    moved = gang("prefill-0", reassigned=DECODE)
    memory = remember({}, [moved], 0.0, PACING)
    assert plan([DECODE], [moved], memory, 0.0) == Plan()
    assert plan([PREFILL, DECODE], [moved], memory, 0.0).actions == (StartGang(ReplicaId("prefill-0.2"), "prefill"),)


def test_failed_gang_is_replaced_in_the_slot_that_it_held():
    moved = dataclasses.replace(failed("prefill-0"), reassigned=DECODE)
    memory = remember(remember({}, [gang("prefill-0", reassigned=DECODE)], 0.0, PACING), [moved], 1.0, PACING)
    assert plan([DECODE], [moved], memory, 1.0).actions[-1] == StartGang(ReplicaId("decode-0"), "decode")


def test_newcomer_waits_for_the_place_of_one_that_leaves():
    leaving = gang("prefill-0", "draining")
    assert plan([DECODE], [leaving], {}, 0.0).actions == ()
    assert plan([DECODE], [], {}, 0.0).actions == (StartGang(ReplicaId("decode-0"), "decode"),)


def test_slot_that_has_served_does_not_wait_for_others_to_leave():
    memory = {DECODE: SlotMemory(last_generation=1, has_served=True)}
    assert plan([DECODE], [gang("prefill-0", "draining")], memory, 0.0).actions == (
        StartGang(ReplicaId("decode-0.2"), "decode"),
    )


def test_slot_of_a_leaving_gang_is_filled_only_when_it_has_left():
    memory = {DECODE: SlotMemory(last_generation=1, has_served=True)}
    assert plan([DECODE], [gang("decode-0", "draining")], memory, 0.0).actions == ()


def test_outdated_gangs_make_room_one_at_a_time():
    old = [gang("prefill-0", fits=frozenset()), gang("decode-0", fits=frozenset())]
    assert plan([PREFILL, DECODE], old, {}, 0.0).actions == (DrainGang(ReplicaId("prefill-0"), "its settings changed"),)
    half_way = [gang("prefill-0.2", "starting"), old[1]]
    assert plan([PREFILL, DECODE], half_way, {}, 0.0).actions == ()
    assert plan([PREFILL, DECODE], [gang("prefill-0.2"), old[1]], {}, 0.0).actions == (
        DrainGang(ReplicaId("decode-0"), "its settings changed"),
    )


def test_outdated_gang_that_still_loads_is_stopped_at_once():
    old = gang("decode-0", "starting", fits=frozenset())
    assert plan([DECODE], [old], {}, 0.0).actions == (StopGang(ReplicaId("decode-0"), "its settings changed"),)


def test_after_a_fatal_start_only_slots_that_have_served_are_filled():
    memory = {DECODE: SlotMemory(last_generation=1, has_served=True)}
    decision = plan([PREFILL, DECODE], [], memory, 0.0, may_start_new=False)
    assert decision.actions == (StartGang(ReplicaId("decode-0.2"), "decode"),)


def test_recalled_ids_are_not_given_out_again():
    memory = recall([ReplicaId("decode-0"), ReplicaId("decode-0.3"), ReplicaId("decode-0.2")])
    assert plan([DECODE], [], memory, 0.0).actions == (StartGang(ReplicaId("decode-0.4"), "decode"),)


def test_phase_names_the_slots_without_service():
    gangs = [gang("prefill-0.2"), gang("decode-0", "starting")]
    assert describe_phase([PREFILL, DECODE], gangs) == "waiting for decode-0"
    assert describe_phase([PREFILL], gangs) == "ready"


def test_phase_tells_of_outdated_and_leaving_gangs():
    assert describe_phase([DECODE], [gang("decode-0", fits=frozenset())]) == "waiting for decode-0"
    assert describe_phase([DECODE], [gang("decode-0"), gang("decode-1", "draining")]) == "draining decode-1"
    assert describe_phase([DECODE], [gang("prefill-0", reassigned=DECODE)]) == "ready"


def test_replicas_of_a_model_that_is_not_the_first_are_named_after_it():
    slot = Slot("decode", 3, "org-small")
    assert name_replica(slot, 2) == "org-small.decode-3.2"
    assert parse_replica(ReplicaId("org-small.decode-3.2")) == (slot, 2)
    assert desired_slots([PoolConfig(role="mixed", model="Org/small")]) == (Slot("mixed", 0, "org-small"),)


def test_spare_gang_takes_no_slot_of_another_model():
    decision = plan([DECODE, Slot("mixed", 0, "s")], [gang("decode-0"), gang("mixed-0")], {}, 0.0)
    assert decision.actions == (
        DrainGang(ReplicaId("mixed-0"), "no longer wanted"),
        StartGang(ReplicaId("s.mixed-0"), "mixed"),
    )
