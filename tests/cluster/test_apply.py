"""A controller that is told to want something else."""

import dataclasses
import os
import signal

import pytest
import ray

from kvasir_cluster.connection import answer
from kvasir_cluster.spec import Timings
from kvasir_protocol.config import EngineConfig, PoolConfig
from kvasir_protocol.errors import ConfigError

TIMINGS = Timings(poll_s=0.05, unseen_s=0.1, drain_s=60.0)


@pytest.fixture
def cluster(start_cluster):
    cluster = start_cluster(PoolConfig(role="prefill"), PoolConfig(role="decode"), timings=TIMINGS)
    cluster.wait_until_ready()
    return cluster


def want(cluster, prefill=1, decode=1, **changes):
    pools = (PoolConfig(role="prefill", replicas=prefill), PoolConfig(role="decode", replicas=decode))
    config = dataclasses.replace(cluster.spec.config, pools=pools, **changes)
    ray.get(cluster.controller.apply.remote(config, config))


def roles(cluster):
    view = cluster.view()
    return {address.replica_id: address.role for address in view.replicas} if view else {}


def names(cluster):
    view = cluster.view()
    return {address.replica_id: address.model for address in view.replicas} if view else {}


def test_the_same_again_changes_nothing(cluster):
    before = cluster.progress()
    want(cluster)
    cluster.wait_until_ready()
    assert cluster.progress() == before


def test_a_larger_pool_gets_more_replicas(cluster):
    pid = cluster.pid("decode-0")
    want(cluster, decode=2)
    cluster.wait_until_ready()
    assert roles(cluster) == {"prefill-0": "prefill", "decode-0": "decode", "decode-1": "decode"}
    assert cluster.pid("decode-0") == pid


def test_a_spare_replica_changes_its_role_and_keeps_its_process(cluster, wait_for):
    want(cluster, prefill=2)
    cluster.wait_until_ready()
    pid = cluster.pid("prefill-1")
    want(cluster, decode=2)
    cluster.wait_until_ready()
    assert roles(cluster) == {"prefill-0": "prefill", "decode-0": "decode", "prefill-1": "decode"}
    assert cluster.pid("prefill-1") == pid
    wait_for((cluster.orders / "0:prefill-1.role").exists, "word of the new role")
    assert (cluster.orders / "0:prefill-1.role").read_text() == "decode"


def test_a_replica_that_is_not_wanted_leaves_the_view_and_ends_when_it_is_idle(cluster, wait_for):
    want(cluster, decode=2)
    cluster.wait_until_ready()
    cluster.order("0:decode-1", "streams", "3")
    want(cluster)
    wait_for(lambda: "decode-1" not in cluster.replica_ids(), "view without it")
    assert cluster.progress().phase == "draining decode-1"
    os.kill(cluster.pid("decode-1"), 0)
    cluster.order("0:decode-1", "streams", "0")
    cluster.wait_until_ready()
    assert "decode-1 has ended" in cluster.progress().news
    assert (cluster.orders / "0:decode-1.stopped").exists()


def test_other_settings_replace_one_replica_after_the_other(cluster):
    want(cluster, engine=EngineConfig(page_size=32))
    cluster.wait_until_ready()
    assert roles(cluster) == {"prefill-0.2": "prefill", "decode-0.2": "decode"}
    news = cluster.progress().news
    assert news.index("prefill-0.2 serves at " + cluster_endpoint(cluster, "prefill-0.2")) < news.index(
        "draining decode-0: its settings changed"
    )


def cluster_endpoint(cluster, replica_id):
    return next(address.endpoint for address in cluster.view().replicas if address.replica_id == replica_id)


def test_a_renamed_model_keeps_its_replicas(cluster, wait_for):
    pid = cluster.pid("decode-0")
    want(cluster, model=dataclasses.replace(cluster.spec.config.model, served_name="renamed"))
    wait_for(lambda: set(names(cluster).values()) == {"renamed"}, "the new name")
    cluster.wait_until_ready()
    assert names(cluster) == {"prefill-0": "renamed", "decode-0": "renamed"}
    assert cluster.pid("decode-0") == pid


def test_another_model_under_the_same_name_is_refused_in_words_and_what_serves_goes_on(cluster):
    before = cluster.progress()
    wish = dataclasses.replace(
        cluster.spec.config, model=dataclasses.replace(cluster.spec.config.model, path="/another")
    )
    with pytest.raises(ConfigError, match="can't become /another"):
        answer(cluster.controller.apply.remote(wish, wish))
    assert cluster.progress() == before
    assert ray.get(cluster.controller.report.remote()).wish == cluster.spec.config


def test_one_of_several_models_is_renamed_and_never_without_a_replica(cluster, wait_for):
    want_second(cluster, "small")
    cluster.wait_until_ready()
    pid = cluster.pid("small.mixed-0")
    want_second(cluster, "tiny")
    assert names(cluster) == {"prefill-0": "fake", "decode-0": "fake", "small.mixed-0": "tiny"}
    cluster.wait_until_ready()
    assert cluster.pid("small.mixed-0") == pid
    os.kill(pid, signal.SIGKILL)
    wait_for(lambda: names(cluster).get("tiny.mixed-0") == "tiny", "its successor")


def want_second(cluster, name):
    config = cluster.spec.config
    second = dataclasses.replace(config.model, served_name=name)
    wish = dataclasses.replace(config, models=(second,), pools=(*config.pools, PoolConfig(role="mixed", model=name)))
    ray.get(cluster.controller.apply.remote(wish, wish))


def test_a_restarted_controller_remembers_what_is_wanted_and_who_took_which_role(cluster, wait_for):
    want(cluster, prefill=2)
    cluster.wait_until_ready()
    want(cluster, decode=2)
    cluster.wait_until_ready()
    before = roles(cluster)
    cluster.kill_controller()
    wait_for(cluster.view, "answer of the restarted controller")
    cluster.wait_until_ready()
    assert roles(cluster) == before


def test_a_start_that_can_not_be_leaves_what_serves_in_place(cluster, wait_for):
    cluster.order("decode-1", "refuse", "no such folder")
    want(cluster, decode=2)
    wait_for(lambda: cluster.progress().fatal is not None, "refusal")
    os.kill(cluster.pid("decode-0"), signal.SIGKILL)
    wait_for(lambda: cluster.replica_ids() == {"prefill-0", "decode-0.2"}, "replacement")
    want(cluster)
    cluster.wait_until_ready()
    assert cluster.progress().fatal is None


def test_a_report_tells_where_every_rank_is(cluster):
    report = ray.get(cluster.controller.report.remote())
    (node,) = ray.nodes()
    assert [(gang.replica_id, gang.hosts) for gang in report.gangs] == [
        ("prefill-0", (node["NodeID"],)),
        ("decode-0", (node["NodeID"],)),
    ]
