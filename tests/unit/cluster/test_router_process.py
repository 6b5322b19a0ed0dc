import socket
import subprocess
import sys
import time

import pytest

from kvasir_cluster.listening import listen
from kvasir_cluster.router_process import MAX_RESTARTS, RouterCommand, RouterOrder, RouterProcess, router_command
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
        words = (sys.executable, "-c", code, str(listener.fileno()))
        routers.append(RouterProcess(RouterCommand(words=words, files=(listener.fileno(),)), listener))
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


def test_a_router_that_has_a_successor_hears_it_otherwise(run, listener):
    router = run(
        "import signal, socket, sys\n"
        "signal.signal(signal.SIGUSR1, lambda *_: sys.exit(0))\n"
        "signal.signal(signal.SIGTERM, signal.SIG_IGN)\n" + ANSWER_HEALTH
    )
    poll(router.health)
    router.ask_to_leave()
    poll(router.has_stopped)


@pytest.fixture
def command(listener):
    config = ClusterConfig(
        model=ModelConfig(path="/models/m", served_name="m"), router=RouterConfig(api_keys=("sesame",))
    )
    order = RouterOrder.of(config, secret=b"s" * 32, controller_endpoint="tcp://127.0.0.1:20000", log_level="warning")
    return router_command(order, listener)


def arguments_of(command, attribute):
    """An attribute of what the router reads from its command line, in a process that inherits its files."""
    _, _, module, *arguments = command.words
    code = (
        f"from {module}.__main__ import parse_arguments, read_settings\n"
        f"options = parse_arguments({arguments!r})\nprint({attribute})"
    )
    run = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, pass_fds=command.files
    )
    return run.stdout.strip()


def test_keys_and_secret_reach_the_router_and_neither_the_disk_nor_the_command_line(command):
    assert arguments_of(command, "read_settings(options).api_keys") == "('sesame',)"
    assert arguments_of(command, "read_settings(options).secret") == str(b"s" * 32)
    assert not any("sesame" in word or "ssss" in word for word in command.words)


def test_the_router_understands_its_command_line(command):
    assert arguments_of(command, "options.controller") == "tcp://127.0.0.1:20000"
