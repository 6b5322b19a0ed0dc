from kvasir_cluster.plan import (
    Failure,
    ObservedGang,
    Pacing,
    Plan,
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


def gang(replica_id, state="ready", failure=None):
    return ObservedGang(replica_id=ReplicaId(replica_id), state=state, failure=failure)


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


def test_gang_without_a_slot_is_stopped():
    assert plan([DECODE], [gang("decode-0"), gang("decode-1")], {}, 0.0).actions == (
        StopGang(ReplicaId("decode-1"), "no longer wanted"),
    )


def test_recalled_ids_are_not_given_out_again():
    memory = recall([ReplicaId("decode-0"), ReplicaId("decode-0.3"), ReplicaId("decode-0.2")])
    assert plan([DECODE], [], memory, 0.0).actions == (StartGang(ReplicaId("decode-0.4"), "decode"),)


def test_phase_names_the_slots_without_service():
    gangs = [gang("prefill-0.2"), gang("decode-0", "starting")]
    assert describe_phase([PREFILL, DECODE], gangs) == "waiting for decode-0"
    assert describe_phase([PREFILL], gangs) == "ready"
