import socket
import time

import pytest

from kvasir.demo import DEMO_MODEL_NAME, demo_model_path
from kvasir_cluster.router_host import RouterHost
from kvasir_cluster.router_process import RouterOrder
from kvasir_protocol.config import ClusterConfig, ModelConfig, RouterConfig

DEADLINE_S = 60.0


@pytest.fixture
def host():
    host = RouterHost("127.0.0.1")
    yield host
    host.stop()


@pytest.fixture
def taken_port():
    with socket.create_server(("127.0.0.1", 0)) as other:
        yield other.getsockname()[1]


def order(port, model=None, **changes):
    config = ClusterConfig(
        model=ModelConfig(path=str(model or demo_model_path()), served_name=DEMO_MODEL_NAME),
        router=RouterConfig(port=port, **changes),
    )
    return RouterOrder.of(config, secret=b"s" * 32, controller_endpoint="tcp://127.0.0.1:9", log_level="warning")


def wait_for_health(host, wanted):
    give_up_at = time.monotonic() + DEADLINE_S
    while (state := host.serve(wanted)).num_live is None:
        assert time.monotonic() < give_up_at, state
        time.sleep(0.05)
    return state


def test_a_router_answers_on_the_address_of_its_host(host, free_port):
    state = wait_for_health(host, order(free_port))
    assert (state.url, state.num_live, state.failure) == (f"http://127.0.0.1:{free_port}", 0, None)


def test_a_port_that_somebody_has_is_told(host, taken_port):
    state = host.serve(order(taken_port))
    assert state.num_live is None
    assert f"can't listen on 127.0.0.1 port {taken_port}" in state.failure


def test_other_settings_on_the_same_port_refuse_no_connection(host, free_port):
    wait_for_health(host, order(free_port))
    host.serve(order(free_port, max_inflight_requests=7))
    with socket.create_connection(("127.0.0.1", free_port), timeout=DEADLINE_S) as client:
        client.sendall(b"GET /health HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        assert client.recv(12) == b"HTTP/1.1 503"


def test_settings_that_were_in_vain_can_be_taken_back(host, free_port, taken_port):
    wait_for_health(host, order(free_port))
    assert host.serve(order(taken_port)).failure is not None
    assert wait_for_health(host, order(free_port)).failure is None


def test_an_address_by_name_takes_other_settings(host, free_port):
    wait_for_health(host, order(free_port, host="localhost"))
    assert host.serve(order(free_port, host="localhost", max_inflight_requests=7)).failure is None


def test_a_router_that_lacks_its_model_is_tried_again_when_it_has_come(free_port, tmp_path):
    host = RouterHost("127.0.0.1", retry_s=0.0)
    wanted = order(free_port, model=tmp_path / "model")
    try:
        give_up_at = time.monotonic() + DEADLINE_S
        while host.serve(wanted).failure is None:
            assert time.monotonic() < give_up_at
            time.sleep(0.05)
        (tmp_path / "model").symlink_to(demo_model_path())
        wait_for_health(host, wanted)
    finally:
        host.stop()


def test_a_stopped_host_leaves_its_port(free_port):
    host = RouterHost("127.0.0.1")
    wait_for_health(host, order(free_port))
    host.stop()
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", free_port), timeout=DEADLINE_S)
