import os
import signal

import psutil
import pytest
import ray

from kvasir_cluster.creation import create_controller
from kvasir_cluster.spec import Timings
from kvasir_protocol.config import PoolConfig
from kvasir_protocol.errors import ServiceUnavailable

PREFILL = PoolConfig(role="prefill")
DECODE = PoolConfig(role="decode")
MIXED = PoolConfig(role="mixed")


def test_both_pools_come_up_and_enter_the_view(start_cluster):
    cluster = start_cluster(PREFILL, DECODE)
    cluster.wait_until_ready()
    view = cluster.view()
    assert [(replica.replica_id, replica.role) for replica in view.replicas] == [
        ("prefill-0", "prefill"),
        ("decode-0", "decode"),
    ]
    assert view.phase == "ready"
    assert [[phase.name for phase in phases] for phases in cluster.progress().start_phases] == [["weights"]] * 2


def test_a_second_controller_is_refused_and_the_first_goes_on(start_cluster):
    cluster = start_cluster(MIXED)
    with pytest.raises(ServiceUnavailable, match="somebody else has just made this cluster"):
        create_controller(cluster.spec, detached=False)
    cluster.wait_until_ready()


def test_killed_replica_is_replaced_under_a_new_id(start_cluster, wait_for):
    cluster = start_cluster(PREFILL, DECODE)
    cluster.wait_until_ready()
    version = cluster.view().version
    os.kill(cluster.pid("decode-0"), signal.SIGKILL)
    wait_for(lambda: cluster.replica_ids() == {"prefill-0", "decode-0.2"}, "replacement")
    assert cluster.view().version > version
    assert all("decode-0-" not in segment.name for segment in cluster.segments())


def test_sick_replica_is_replaced(start_cluster, wait_for):
    cluster = start_cluster(MIXED)
    cluster.wait_until_ready()
    cluster.order("0:mixed-0", "sick", "no step for 20 s with 3 requests queued")
    wait_for(lambda: "mixed-0" not in cluster.replica_ids(), "empty view")
    (cluster.orders / "0:mixed-0.sick").unlink()
    wait_for(lambda: cluster.replica_ids() and cluster.progress().is_ready, "replacement")
    assert "stopping mixed-0: no step for 20 s with 3 requests queued" in cluster.progress().news


def test_hung_replica_is_replaced_within_the_deadline(start_cluster, wait_for):
    timings = Timings(poll_s=0.05, health_period_s=0.1, health_deadline_s=1.5)
    cluster = start_cluster(MIXED, timings=timings)
    cluster.wait_until_ready()
    pid = cluster.pid("mixed-0")
    os.kill(pid, signal.SIGSTOP)
    wait_for(lambda: cluster.replica_ids() == {"mixed-0.2"}, "replacement")
    wait_for(lambda: not psutil.pid_exists(pid), "end of the hung process")


def test_restarted_controller_takes_over_the_living_replicas(start_cluster, wait_for):
    cluster = start_cluster(PREFILL, DECODE)
    cluster.wait_until_ready()
    before = cluster.view()
    cluster.kill_controller()
    after = wait_for(cluster.view, "answer of the restarted controller")
    assert set(after.replicas) == set(before.replicas)
    assert after.version > before.version


def test_replica_lost_while_the_controller_was_dead_gets_a_new_id(start_cluster, wait_for):
    cluster = start_cluster(MIXED)
    cluster.wait_until_ready()
    os.kill(cluster.pid("mixed-0"), signal.SIGKILL)
    cluster.kill_controller()
    wait_for(lambda: cluster.replica_ids() == {"mixed-0.2"}, "replacement")


def test_bad_checkpoint_is_told_in_one_line_and_not_tried_again(start_cluster, wait_for):
    cluster = start_cluster(PREFILL, DECODE)
    cluster.order("decode-0", "refuse", "model.safetensors is truncated")
    fatal = wait_for(lambda: cluster.progress().fatal, "verdict")
    assert fatal == "model.safetensors is truncated"
    assert "starting decode-0.2" not in cluster.progress().news


def test_replica_that_crashes_at_every_start_is_given_up(start_cluster, wait_for):
    cluster = start_cluster(MIXED)
    cluster.order("mixed-0", "crash")
    fatal = wait_for(lambda: cluster.progress().fatal, "verdict")
    assert fatal == "mixed-0.3 failed to start 3 times: its process died while it started"


def test_pools_that_can_never_fit_are_refused_at_once(start_cluster, wait_for):
    cluster = start_cluster(PREFILL, PoolConfig(role="decode", replicas=9))
    fatal = wait_for(lambda: cluster.progress().fatal, "verdict")
    assert fatal == (
        'pool "decode" needs 1 CPU per replica but the largest free node has 0 once 3 of 9 replicas are placed; '
        "lower replicas or add a node"
    )


def test_stop_ends_every_replica_in_order_and_leaves_no_segment(start_cluster):
    cluster = start_cluster(PREFILL, DECODE)
    cluster.wait_until_ready()
    pids = [cluster.pid("prefill-0"), cluster.pid("decode-0")]
    assert len(cluster.segments()) == 2
    ray.get(cluster.controller.stop.remote())
    assert (cluster.orders / "0:prefill-0.stopped").exists()
    assert cluster.segments() == []
    psutil.wait_procs([psutil.Process(pid) for pid in pids if psutil.pid_exists(pid)], timeout=10)
    assert not any(psutil.pid_exists(pid) for pid in pids)
