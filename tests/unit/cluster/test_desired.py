import dataclasses

import pytest

from kvasir_cluster.desired import Desired, fingerprint
from kvasir_cluster.plan import Slot
from kvasir_protocol.config import ClusterConfig, EngineConfig, ModelConfig, PoolConfig, RouterConfig
from kvasir_protocol.errors import ConfigError
from kvasir_protocol.ids import ReplicaId
from kvasir_protocol.view import ReplicaAddress

CONFIG = ClusterConfig(model=ModelConfig(path="/m", served_name="m"))
RESOLVED = dataclasses.replace(CONFIG, engine=EngineConfig(device="cpu", num_threads=2))
PREFILL_1 = ReplicaId("prefill-1")


def with_one_gang():
    return Desired(config=CONFIG, resolved=RESOLVED).with_gang(PREFILL_1, Slot("prefill", 1))


def wanting(desired, **changes):
    return dataclasses.replace(desired, config=dataclasses.replace(desired.config, **changes))


def test_nothing_is_lost_on_the_way_through_bytes():
    desired = dataclasses.replace(with_one_gang(), view_port=20001)
    assert Desired.unpack(desired.pack()) == desired


def test_a_gang_is_remembered_with_the_pool_it_was_built_for():
    record = with_one_gang().record(PREFILL_1)
    assert (record.slot, record.pool, record.reassigned) == (Slot("prefill", 1), PoolConfig(role="prefill"), None)


def test_a_gang_may_hold_another_slot_and_be_forgotten():
    moved = with_one_gang().with_slot(PREFILL_1, Slot("decode", 4))
    record = moved.record(PREFILL_1)
    assert (record.reassigned, record.pool.name) == (Slot("decode", 4), "decode")
    assert moved.without_gang(PREFILL_1).gangs == ()


def test_a_gang_fits_every_pool_that_is_built_alike():
    desired = with_one_gang()
    record = desired.record(PREFILL_1)
    assert desired.fits(record) == {"prefill", "decode"}
    marked = (PoolConfig(role="prefill"), PoolConfig(role="decode", node_resource="fast"))
    assert wanting(desired, pools=marked).fits(record) == {"prefill"}


def test_more_replicas_and_other_routers_leave_a_gang_as_good_as_before():
    desired = with_one_gang()
    record = desired.record(PREFILL_1)
    more = (PoolConfig(role="prefill", replicas=3), PoolConfig(role="decode", replicas=2))
    assert wanting(desired, pools=more, router=RouterConfig(port=9)).fits(record) == {"prefill", "decode"}


def test_other_settings_of_the_engine_outdate_a_gang():
    desired = with_one_gang()
    assert wanting(desired, engine=EngineConfig(page_size=32)).fits(desired.record(PREFILL_1)) == frozenset()


def test_what_the_hosts_settled_does_not_outdate_a_gang():
    desired = with_one_gang()
    other_hosts = dataclasses.replace(CONFIG, engine=EngineConfig(device="cpu", num_threads=7))
    assert dataclasses.replace(desired, resolved=other_hosts).fits(desired.record(PREFILL_1)) == {"prefill", "decode"}


def test_fingerprints_tell_models_apart_but_not_roles():
    prefill, decode = CONFIG.pools
    assert fingerprint(CONFIG, prefill) == fingerprint(CONFIG, decode)
    other = dataclasses.replace(CONFIG, model=ModelConfig(path="/n", served_name="m"))
    assert fingerprint(other, prefill) != fingerprint(CONFIG, prefill)


SMALL = ModelConfig(path="/s", served_name="org/small")


def test_a_gang_fits_no_pool_of_another_model_and_keeps_its_own():
    pools = (PoolConfig(role="mixed"), PoolConfig(role="mixed", model="org/small"))
    config = dataclasses.replace(CONFIG, models=(SMALL,), pools=pools)
    name = ReplicaId("org-small.mixed-0")
    desired = Desired(config=config, resolved=config).with_gang(name, Slot("mixed", 0, "org-small"))
    record = desired.record(name)
    assert (record.model, record.pool) == (SMALL, pools[1])
    assert desired.fits(record) == {"mixed"}
    other = dataclasses.replace(SMALL, max_model_len=9)
    assert wanting(desired, models=(other,)).fits(record) == frozenset()
    assert wanting(desired, models=(), pools=pools[:1]).fits(record) == frozenset()
    assert wanting(desired, model=dataclasses.replace(CONFIG.model, max_model_len=9)).fits(record) == {"mixed"}


MIXED, SMALL_MIXED = ReplicaId("mixed-0"), ReplicaId("org-small.mixed-0")


def with_two_models():
    pools = (PoolConfig(role="mixed"), PoolConfig(role="mixed", model="org/small"))
    config = dataclasses.replace(CONFIG, models=(SMALL,), pools=pools)
    desired = Desired(config=config, resolved=config).with_gang(MIXED, Slot("mixed", 0))
    return desired.with_gang(SMALL_MIXED, Slot("mixed", 0, "org-small"))


def wanting_both(desired, **changes):
    config = dataclasses.replace(desired.config, **changes)
    return desired.wanting(config, config)


def shown(desired):
    """What routers get of all gangs."""
    addresses = [ReplicaAddress(replica_id=name, role="mixed", endpoint="tcp://h:1") for name in (MIXED, SMALL_MIXED)]
    return [(address.replica_id, address.model) for address in desired.shown(addresses)]


def test_each_models_replicas_are_shown_under_its_name():
    assert shown(with_two_models()) == [(MIXED, "m"), (SMALL_MIXED, "org/small")]


def test_replicas_of_a_first_model_that_was_renamed_are_shown_under_its_name_of_now():
    renamed = ModelConfig(path="/m", served_name="n")
    assert shown(wanting_both(with_two_models(), model=renamed)) == [(MIXED, "n"), (SMALL_MIXED, "org/small")]


def with_second_as(name, **changes):
    second = dataclasses.replace(SMALL, served_name=name, **changes)
    pools = (PoolConfig(role="mixed"), PoolConfig(role="mixed", model=name))
    return wanting_both(with_two_models(), models=(second,), pools=pools)


def test_replicas_of_a_second_model_that_was_renamed_hold_its_new_places_as_they_are():
    renamed = with_second_as("Org/next")
    record = renamed.record(SMALL_MIXED)
    assert (record.slot, record.pool.name) == (Slot("mixed", 0, "org-next"), "Org/next/mixed")
    assert (record.reassigned, renamed.fits(record)) == (record.slot, {"mixed"})
    assert shown(renamed) == [(MIXED, "m"), (SMALL_MIXED, "Org/next")]


def test_replicas_of_a_renamed_model_with_other_settings_answer_until_they_are_replaced():
    changed = with_second_as("next", max_model_len=9)
    assert changed.fits(changed.record(SMALL_MIXED)) == frozenset()
    assert shown(changed) == [(MIXED, "m"), (SMALL_MIXED, "next")]


def test_replicas_of_other_weights_are_not_shown_under_a_name_that_differs_in_signs_alone():
    assert shown(with_second_as("Org-Small", path="/t")) == [(MIXED, "m")]


def test_replicas_of_a_model_that_is_gone_are_not_shown_as_the_remaining_ones():
    assert shown(wanting_both(with_two_models(), models=(), pools=(PoolConfig(role="mixed"),))) == [(MIXED, "m")]


def test_a_name_that_serves_can_not_come_to_mean_another_model():
    with pytest.raises(ConfigError, match=r"model\.path is /s and can't become /t for 'org/small'"):
        with_second_as("org/small", path="/t")
