"""`kvasir serve` with replicas of several ranks, each rank an actor of its own."""

import psutil
import pytest
from serving import END_S, Serving, SharedServing, is_alive

ANSWERED = "Norse"


@pytest.fixture(scope="module")
def shared(tmp_path_factory):
    """Two replicas of two ranks each."""
    home = tmp_path_factory.mktemp("serve")
    with SharedServing(lambda: Serving(home, "--mixed", "2", "--tensor-parallel-size", "2")) as shared:
        yield shared


@pytest.fixture
def server(shared):
    return shared.ready()


def test_each_rank_is_a_process_and_listens_on_the_loopback_interface_only(server):
    assert len(server.ranks()) == 4
    sockets = [socket for process in server.ranks() for socket in process.net_connections("tcp")]
    addresses = {socket.laddr.ip for socket in sockets if socket.status == psutil.CONN_LISTEN}
    assert addresses == {"127.0.0.1", "::ffff:127.0.0.1"}


def test_lost_rank_takes_its_gang_with_it_and_another_comes_in_its_place(server, wait_for):
    before = server.ask()
    assert ANSWERED in before
    lost = server.ranks()
    lost[-1].kill()
    assert server.ask() == before
    server.wait_for_output(".2 serves at")
    wait_for(lambda: len(server.replica_ids()) == 2, "a replica in place of the lost one")
    assert len({name for name in server.replica_ids() if name.endswith(".2")}) == 1
    assert sum(is_alive(process) for process in lost) == 2
    assert server.ask() == before


def test_nothing_stays_behind(server):
    assert server.stop() == 0
    assert server.leftovers(patience_s=10.0) == []


def test_tensor_parallel_size_that_does_not_divide_the_heads_is_refused_at_once(tmp_path):
    refused = Serving(tmp_path, "--tensor-parallel-size", "3")
    try:
        assert refused.process.wait(END_S) == 1
    finally:
        refused.kill_all()
    assert "tensor_parallel_size 3 does not divide the model's 8 heads; set one of 1, 2, 4, 8" in refused.output
