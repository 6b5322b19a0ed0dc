import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from kvasir.cli.host import listen
from kvasir.cli.instance import Instance
from kvasir.cli.router_process import MAX_RESTARTS, RouterProcess, router_command
from kvasir.cli.setup import Setup
from kvasir_cluster.pools import Hardware
from kvasir_protocol.config import ClusterConfig, ModelConfig, RouterConfig
from kvasir_protocol.errors import ServiceUnavailable

DEADLINE_S = 30.0

ANSWER_HEALTH = """
import socket, sys
listener = socket.socket(fileno=int(sys.argv[1]))
while True:
    client, _ = listener.accept()
    client.recv(4096)
    client.sendall(b'HTTP/1.1 503 Busy\\r\\nContent-Length: 11\\r\\n\\r\\n{"live": 0}')
    client.close()
"""


@pytest.fixture
def listener():
    with listen("127.0.0.1", 0) as listener:
        yield listener


@pytest.fixture
def run(listener):
    """A function that runs a piece of Python as if it were the router."""
    routers = []

    def run(code):
        routers.append(RouterProcess([sys.executable, "-c", code, str(listener.fileno())], listener))
        routers[-1].start()
        return routers[-1]

    yield run
    for router in routers:
        router.ask_to_stop()
        poll(router.has_stopped)


def poll(question):
    give_up_at = time.monotonic() + DEADLINE_S
    while not (answer := question()):
        assert time.monotonic() < give_up_at, "nothing came"
        time.sleep(0.01)
    return answer


def test_a_router_that_died_is_started_again(run):
    router = run("raise SystemExit(3)")
    poll(router.keep_alive)


def test_a_router_that_dies_over_and_over_is_given_up(run):
    router = run("raise SystemExit(3)")
    with pytest.raises(ServiceUnavailable, match=rf"died {MAX_RESTARTS + 1} times within 60 s, last with exit code 3"):
        poll(lambda: router.keep_alive() and False)


def test_a_router_that_refuses_its_settings_is_not_started_again(run):
    router = run("raise SystemExit(2)")
    with pytest.raises(ServiceUnavailable, match="can't run with these settings"):
        poll(router.keep_alive)


def test_health_is_read_also_while_no_replica_serves(run):
    assert poll(run(ANSWER_HEALTH).health).num_live == 0


def test_a_silent_router_has_no_health_and_a_client_may_wait_for_it(listener, run):
    with socket.create_connection(listener.getsockname(), timeout=DEADLINE_S) as waiting:
        waiting.sendall(b"GET /health HTTP/1.1\r\n\r\n")
        run(ANSWER_HEALTH)
        assert waiting.recv(12) == b"HTTP/1.1 503"


def test_a_living_router_is_left_alone_and_ends_when_asked(run):
    router = run("import time; time.sleep(1000)")
    assert not router.keep_alive()
    router.ask_to_stop()
    poll(router.has_stopped)


@pytest.fixture
def setup_with_keys(listener, tmp_path):
    class Here(Instance):
        @property
        def directory(self) -> Path:
            return tmp_path

    return Setup(
        config=ClusterConfig(
            model=ModelConfig(path="/models/m", served_name="m"), router=RouterConfig(api_keys=("sesame",))
        ),
        hardware=Hardware(num_cores=1, num_gpus=0),
        listener=listener,
        instance=Here("abc"),
        secret_file=tmp_path / "secret",
        control_port=20000,
        log_level="warning",
    )


def test_keys_reach_the_router_by_a_file_that_others_cannot_read(setup_with_keys, tmp_path):
    command = router_command(setup_with_keys)
    file = tmp_path / "api-keys"
    assert str(file) in command
    assert "sesame" not in command
    assert file.read_text() == "sesame\n"
    assert file.stat().st_mode & 0o777 == 0o600


def test_the_router_understands_its_command_line(setup_with_keys):
    _, _, module, *arguments = router_command(setup_with_keys)
    code = f"from {module}.__main__ import parse_arguments; print(parse_arguments({arguments!r}).controller)"
    parsed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert parsed.stdout == "tcp://127.0.0.1:20000\n"
