import os
import signal
import time
import uuid
from pathlib import Path

import psutil
import pytest
import ray
from fake_replica import build_fake
from ray._private import worker

from kvasir_cluster.gang import Gang, GangSpec, find_groups
from kvasir_cluster.spec import Timings
from kvasir_protocol.config import EngineConfig, HandoverConfig, ModelConfig, PoolConfig, ReplicaConfig
from kvasir_protocol.ids import ReplicaId

DECODE = ReplicaId("decode-0")


@pytest.fixture
def make_spec(local_ray, tmp_path):
    """A function that describes a gang of so many ranks."""
    cluster = f"kvasir-{uuid.uuid4().hex[:6]}"

    def make(num_ranks=2, timings=None):
        return GangSpec(
            replica=ReplicaConfig(
                replica_id=DECODE,
                role="decode",
                model=ModelConfig(path=str(tmp_path), served_name="fake"),
                engine=EngineConfig(),
                handover=HandoverConfig(),
                segment_prefix=cluster,
            ),
            pool=PoolConfig(role="decode", tensor_parallel_size=num_ranks),
            resource="CPU",
            secret=b"s" * 32,
            build_rank=build_fake,
            timings=timings or Timings(),
        )

    return make


@pytest.fixture
def create(make_spec):
    """A function that creates a gang; it is torn down after the test."""
    gangs = []

    def create(**changes):
        gangs.append(Gang.create(make_spec(**changes), time.monotonic()))
        return gangs[-1]

    yield create
    for gang in gangs:
        gang.tear_down()


@pytest.fixture
def settle(wait_for):
    """A function that waits until a gang no longer starts, and gives what it has become."""

    def observe(gang):
        observed = gang.observe(time.monotonic())
        return None if observed.state == "starting" else observed

    return lambda gang: wait_for(lambda: observe(gang), "settled gang")


def pids(tmp_path):
    return {file.name[0]: int(file.read_text()) for file in tmp_path.glob("*.pid")}


def test_gang_is_ready_when_every_rank_is_and_is_reached_at_its_leader(create, settle, tmp_path):
    gang = create()
    assert settle(gang).state == "ready"
    leader = pids(tmp_path)["0"]
    assert gang.address is not None
    assert gang.address.endpoint.endswith(f"/{leader}")


def test_log_of_a_rank_has_more_than_warnings(create, settle, wait_for):
    settle(create())
    logs = Path(worker._global_node.get_logs_dir_path())
    said = f"INFO fake_replica: 1:{DECODE} has started"
    wait_for(lambda: any(said in file.read_text() for file in logs.glob("worker-*.err")), "line in the log")


def test_one_rank_that_refuses_fails_the_gang_with_its_own_words(create, settle, tmp_path):
    (tmp_path / f"1:{DECODE}.refuse").write_text("no such weights")
    observed = settle(create())
    assert observed.state == "failed"
    assert (observed.failure.message, observed.failure.can_heal) == ("no such weights", False)


def test_one_lost_rank_fails_a_gang_that_served(create, settle, wait_for, tmp_path):
    gang = create()
    settle(gang)
    os.kill(pids(tmp_path)["1"], signal.SIGKILL)
    wait_for(lambda: gang.observe(time.monotonic()).state == "failed", "failed gang")


def test_tear_down_ends_every_rank_and_gives_the_place_back(create, settle, wait_for, tmp_path, make_spec):
    gang = create()
    settle(gang)
    gang.tear_down()
    wait_for(lambda: not any(psutil.pid_exists(pid) for pid in pids(tmp_path).values()), "end of both ranks")
    cluster = make_spec().replica.segment_prefix
    wait_for(lambda: find_groups(cluster) == {DECODE: False}, "removed placement group")


def test_gang_without_a_place_says_what_it_lacks_after_seconds(create, settle):
    observed = settle(create(num_ranks=99, timings=Timings(placement_s=0.5)))
    assert observed.failure.message.startswith(
        'pool "decode" needs 99 CPUs per replica (tensor_parallel_size=99) but the largest free node has '
    )


def test_gang_of_another_controller_is_adopted_with_its_address(create, settle, make_spec):
    first = create()
    settle(first)
    second = Gang.adopt(make_spec(), time.monotonic())
    assert second is not None
    assert settle(second).state == "ready"
    assert second.address == first.address


def test_gang_that_lacks_a_rank_is_not_adopted_but_removed(create, settle, make_spec, wait_for):
    settle(create())
    spec = make_spec()
    ray.kill(ray.get_actor(spec.actor_name(1)))
    wait_for(lambda: Gang.adopt(spec, time.monotonic()) is None, "refusal")
    wait_for(lambda: find_groups(spec.replica.segment_prefix) == {DECODE: False}, "removed placement group")
