import dataclasses

import pytest

from kvasir_cluster.changes import Change, find_changes
from kvasir_protocol.config import ClusterConfig, EngineConfig, ModelConfig, PoolConfig, RouterConfig

CONFIG = ClusterConfig(model=ModelConfig(path="/m", served_name="m"))


def wanting(**changes):
    return dataclasses.replace(CONFIG, **changes)


def pools(**replicas):
    return tuple(PoolConfig(role=role, replicas=number) for role, number in replicas.items())


def test_the_same_again_changes_nothing():
    assert find_changes(CONFIG, wanting()) == ()


def test_a_new_cluster_is_created_whole():
    assert find_changes(None, CONFIG) == (
        Change("create", "controller of 'main', on the head"),
        Change("create", "pool prefill: 1 replica"),
        Change("create", "pool decode: 1 replica"),
        Change("create", "router on the head, port 8000"),
    )


def test_the_end_takes_all_away():
    assert [change.kind for change in find_changes(CONFIG, None)] == ["remove"] * 4


def test_a_larger_pool_is_a_change_of_that_pool_alone():
    assert find_changes(CONFIG, wanting(pools=pools(prefill=1, decode=3))) == (
        Change("change", "pool decode: 1 replica -> 3 replicas"),
    )


def test_replicas_that_go_from_pool_to_pool_are_told():
    before, after = wanting(pools=pools(prefill=3, decode=1)), wanting(pools=pools(prefill=1, decode=2))
    assert find_changes(before, after) == (
        Change("change", "pool prefill: 3 replicas -> 1 replica"),
        Change("change", "pool decode: 1 replica -> 2 replicas (1 from prefill, with the weights they have)"),
    )


def test_one_mixed_pool_becomes_two_with_the_same_replicas():
    before, after = wanting(pools=pools(mixed=2)), wanting(pools=pools(prefill=1, decode=1))
    assert find_changes(before, after) == (
        Change("create", "pool prefill: 1 replica (1 from mixed, with the weights they have)"),
        Change("create", "pool decode: 1 replica (1 from mixed, with the weights they have)"),
        Change("remove", "pool mixed: 2 replicas"),
    )


def test_no_replica_moves_between_pools_that_are_built_otherwise():
    before = wanting(pools=pools(prefill=2, decode=1))
    after = wanting(pools=pools(prefill=1, decode=2), engine=EngineConfig(page_size=32))
    changes = find_changes(before, after)
    assert not any("with the weights" in change.what for change in changes)
    assert Change("change", "engine.page_size: 16 -> 32 (its replicas are replaced, one at a time)") in changes


def test_the_form_of_a_pool_is_told():
    marked = (PoolConfig(role="mixed", node_resource="fast"),)
    assert Change("create", "pool mixed: 1 replica, on hosts with fast") in find_changes(None, wanting(pools=marked))


def test_settings_of_the_routers_are_told_but_no_key():
    after = wanting(router=RouterConfig(port=9, placement="every-host", api_keys=("sesame",)))
    assert find_changes(CONFIG, after) == (
        Change("change", "router.port: 8000 -> 9"),
        Change("change", "router.placement: head -> every-host"),
        Change("change", "router.api_keys: other keys"),
    )


SMALL = ModelConfig(path="/s", served_name="org/small")
SMALL_POOL = PoolConfig(role="mixed", model="org/small")
NEXT = ModelConfig(path="/s", served_name="next")
NEXT_POOL = PoolConfig(role="mixed", model="next")


def with_small(**changes):
    small = dataclasses.replace(SMALL, **changes)
    return wanting(models=(small,), pools=(*CONFIG.pools, SMALL_POOL))


def test_a_model_more_brings_its_pools_and_leaves_the_others():
    assert find_changes(CONFIG, with_small()) == (Change("create", "pool org/small/mixed: 1 replica"),)
    assert find_changes(with_small(), CONFIG) == (Change("remove", "pool org/small/mixed: 1 replica"),)


def test_no_replica_moves_between_models():
    before = wanting(pools=pools(prefill=2, decode=1))
    after = dataclasses.replace(with_small(path="/m"), pools=(*pools(prefill=1, decode=1), SMALL_POOL))
    assert not any("with the weights" in change.what for change in find_changes(before, after))


def test_settings_of_a_second_model_are_told_by_its_name():
    told = Change("change", "model org/small.max_model_len: None -> 9 (its replicas are replaced, one at a time)")
    assert find_changes(with_small(), with_small(max_model_len=9)) == (told,)


@pytest.mark.parametrize(
    ("present", "wanted", "old", "new"),
    [
        (CONFIG, wanting(model=ModelConfig(path="/m", served_name="n")), "m", "n"),
        (with_small(), wanting(models=(NEXT,), pools=(*CONFIG.pools, NEXT_POOL)), "org/small", "next"),
    ],
    ids=["the first", "a second"],
)
def test_another_name_alone_replaces_nothing(present, wanted, old, new):
    told = Change("change", f"model {old}: its name is {new} from now on, its replicas stay")
    assert find_changes(present, wanted) == (told,)


def test_what_changes_with_the_name_is_told_by_the_new_one():
    longer, more = dataclasses.replace(NEXT, max_model_len=9), dataclasses.replace(NEXT_POOL, replicas=2)
    after = wanting(models=(longer,), pools=(*CONFIG.pools, more))
    assert [change.what for change in find_changes(with_small(), after)] == [
        "model org/small: its name is next from now on, its replicas stay",
        "pool next/mixed: 1 replica -> 2 replicas",
        "model next.max_model_len: None -> 9 (its replicas are replaced, one at a time)",
    ]
