"""A controller that comes back to something it did not expect."""

import dataclasses
import os
import socket
import time
import uuid

import psutil
import pytest
import ray
from ray.exceptions import RayError
from ray.experimental.internal_kv import _internal_kv_get, _internal_kv_put

from kvasir_cluster.desired import Desired
from kvasir_cluster.desired_store import NAMESPACE
from kvasir_cluster.gang import find_groups
from kvasir_cluster.router_process import RouterOrder
from kvasir_cluster.routers import RouterKeeper
from kvasir_cluster.spec import Timings
from kvasir_protocol.config import ModelConfig, PoolConfig, RouterConfig

MIXED = PoolConfig(role="mixed")
TIMINGS = Timings(poll_s=0.05, bind_s=0.2)


@pytest.fixture
def cluster(start_cluster):
    cluster = start_cluster(MIXED, timings=TIMINGS)
    cluster.wait_until_ready()
    return cluster


def fatal_of(cluster):
    """What the controller can't do; None also while Ray starts it again."""
    try:
        return cluster.progress().fatal
    except RayError:
        return None


def is_gone(pid):
    return not psutil.pid_exists(pid)


class Memory:
    """What the controller must not forget, as Ray's head has it."""

    def __init__(self, cluster):
        self._key = cluster.spec.name.encode()

    def read(self):
        return _internal_kv_get(self._key, namespace=NAMESPACE)

    def write(self, content):
        _internal_kv_put(self._key, content, overwrite=True, namespace=NAMESPACE)


def test_what_can_not_be_taken_over_is_told_and_taken_over_as_soon_as_it_can_be(cluster, wait_for):
    memory, pid = Memory(cluster), cluster.pid("mixed-0")
    content = memory.read()
    memory.write(b"no msgpack")
    cluster.kill_controller()
    fatal = wait_for(lambda: fatal_of(cluster), "word of what is wrong")
    assert fatal.startswith("the controller can't take over what is there: ")
    os.kill(pid, 0)
    memory.write(content)
    cluster.wait_until_ready()
    assert cluster.progress().fatal is None
    assert cluster.pid("mixed-0") == pid


def test_stop_takes_away_also_what_could_not_be_taken_over(cluster, wait_for):
    pid = cluster.pid("mixed-0")
    Memory(cluster).write(b"no msgpack")
    cluster.kill_controller()
    wait_for(lambda: fatal_of(cluster), "word of what is wrong")
    ray.get(cluster.controller.stop.remote())
    wait_for(lambda: is_gone(pid), "end of the replica")
    wait_for(lambda: set(find_groups(cluster.spec.name).values()) == {False}, "removed placement group")


def test_controller_that_was_told_to_stop_ends_though_nobody_waits_for_it(cluster, wait_for):
    pids = [cluster.progress().process_id, cluster.pid("mixed-0")]
    cluster.controller.stop.remote()
    wait_for(lambda: all(map(is_gone, pids)), "end of all processes")
    with pytest.raises(RayError):
        cluster.progress()


def test_stopped_cluster_is_not_ready(cluster):
    ray.get(cluster.controller.stop.remote())
    progress = cluster.progress()
    assert (progress.phase, progress.is_ready) == ("stopping", False)


def test_controller_that_died_while_it_stopped_goes_on_with_it(cluster, wait_for):
    memory, pid = Memory(cluster), cluster.pid("mixed-0")
    memory.write(dataclasses.replace(Desired.unpack(memory.read()), is_ending=True).pack())
    cluster.kill_controller()
    wait_for(lambda: is_gone(pid), "end of the replica")
    wait_for(lambda: memory.read() is None, "empty table")


def restart_with_view_at(port, cluster):
    memory = Memory(cluster)
    memory.write(dataclasses.replace(Desired.unpack(memory.read()), view_port=port).pack())
    cluster.kill_controller()


def test_view_port_that_was_taken_meanwhile_is_told(cluster, wait_for):
    with socket.create_server(("127.0.0.1", 0)) as taker:
        port = taker.getsockname()[1]
        restart_with_view_at(port, cluster)
        fatal = wait_for(lambda: fatal_of(cluster), "word of what is wrong")
    assert fatal.startswith(f"can't listen on 127.0.0.1:{port}")


def test_routers_that_the_controller_placed_are_told_another_port_when_one_was_taken(start_cluster, wait_for):
    cluster = start_cluster(MIXED, timings=TIMINGS, places_routers=True)
    wait_for(lambda: cluster.progress().phase == "ready", "replica")
    with socket.create_server(("127.0.0.1", 0)) as taker:
        port = taker.getsockname()[1]
        restart_with_view_at(port, cluster)
        wait_for(lambda: fatal_of(cluster) is None and news_of(cluster, "routers are told another"), "other port")
    wait_for(lambda: Desired.unpack(Memory(cluster).read()).view_port not in (port, 0), "note of the other port")


def news_of(cluster, words):
    try:
        return [news for news in cluster.progress().news if words in news]
    except RayError:
        return []


@pytest.fixture
def make_keeper(local_ray):
    """A function that gives another keeper of the same routers, as a restarted controller has one."""
    cluster = f"kvasir-{uuid.uuid4().hex[:6]}"
    return lambda: RouterKeeper(cluster)


def test_routers_of_an_earlier_controller_are_found_and_can_be_ended(make_keeper, free_port, tmp_path, wait_for):
    order = RouterOrder(
        models=(ModelConfig(path=str(tmp_path), served_name="fake"),),
        router=RouterConfig(host="127.0.0.1", port=free_port),
        handover_deadline_s=1.0,
        secret=b"s" * 32,
        controller_endpoint="tcp://127.0.0.1:9",
        log_level="warning",
    )
    first, second = make_keeper(), make_keeper()
    first.keep(order, 0.0)
    wait_for(lambda: first.keep(order, time.monotonic()) or first.states[0][1], "router")
    second.adopt()
    assert [address for address, _ in second.states] == [address for address, _ in first.states]
    second.stop(10.0)
    third = make_keeper()
    wait_for(lambda: third.adopt() or third.states == (), "end of the router's actor")
