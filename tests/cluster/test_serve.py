"""`kvasir serve` with the demo model, as a person runs it."""

import os
import signal
import subprocess
from pathlib import Path

import httpx
import openai
import psutil
import pytest
from serving import END_S, KVASIR, Serving, SharedServing, is_alive

ANSWERED = "Norse"

PARTS = ("weights", "warm-up", "test answer", "memory of pages")


@pytest.fixture(scope="module")
def shared(tmp_path_factory):
    home = tmp_path_factory.mktemp("serve")
    with SharedServing(lambda: Serving(home)) as shared:
        yield shared


@pytest.fixture
def server(shared):
    return shared.ready()


@pytest.fixture
def start(tmp_path):
    """A function that starts a server of the test's own."""
    started: list[Serving] = []

    def start(*arguments, **options) -> Serving:
        started.append(Serving(tmp_path, *arguments, **options))
        return started[-1]

    yield start
    for serving in started:
        serving.kill_all()


def kvasir(*arguments, given=""):
    command = [KVASIR, *arguments]
    return subprocess.run(command, input=given, capture_output=True, text=True, timeout=60)


def test_every_phase_of_the_start_is_shown_with_its_seconds(server):
    parts = [f"{part} of {replica}" for replica in ("prefill-0", "decode-0") for part in PARTS]
    for phase in ("ray", *parts, "prefill-0", "decode-0", "router", "ready in"):
        (line,) = [line for line in server.output.splitlines() if line.strip().startswith(phase)]
        assert line.endswith(" s")


def test_the_demo_model_answers(server):
    assert ANSWERED in server.ask()


def test_openais_client_gets_a_stream(server):
    client = openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0)
    stream = client.chat.completions.create(
        model="kvasir-demo",
        messages=[{"role": "user", "content": "Who was Kvasir?"}],
        temperature=0,
        stream=True,
    )
    pieces = [chunk.choices[0].delta.content or "" for chunk in stream if chunk.choices]
    assert ANSWERED in "".join(pieces)
    assert len([piece for piece in pieces if piece]) > 1


def test_chat_answers_a_piped_question(server):
    run = kvasir("chat", "--url", server.url, "--max-tokens", "30", given="Who was Kvasir?\n")
    assert run.returncode == 0
    assert "Kvasir" in run.stdout


def test_status_lists_the_replicas(server):
    run = kvasir("status", "--url", server.url)
    assert run.returncode == 0
    rows = [line.split()[1:3] for line in run.stdout.splitlines()]
    assert ["prefill", "up"] in rows
    assert ["decode", "up"] in rows


def test_a_second_server_on_the_same_port_is_refused_at_once(server, start):
    port = server.url.rpartition(":")[2]
    second = start("--port", port)
    assert second.process.wait(END_S) == 1
    assert second.output == (
        f"kvasir: error: can't listen on 127.0.0.1 port {port}: Address already in use; "
        "choose another with --port or router.port\n"
    )


def test_everything_listens_on_the_loopback_interface_only(server):
    processes = [psutil.Process(server.process.pid), *filter(is_alive, server.note_processes())]
    sockets = [socket for process in processes for socket in process.net_connections("tcp")]
    addresses = {socket.laddr.ip for socket in sockets if socket.status == psutil.CONN_LISTEN}
    assert addresses == {"127.0.0.1", "::ffff:127.0.0.1"}


def test_controller_loads_no_torch(server):
    controller = server.find_process("ray::Controller")
    assert "libtorch" not in Path(f"/proc/{controller.pid}/maps").read_text()


def test_replicas_yield_to_nobody(server):
    assert server.find_process("ray::RankActor").nice() == os.nice(0)


def test_a_killed_router_is_started_again(server, wait_for):
    server.find_process("kvasir_router").kill()
    server.wait_for_output("the router died; started it again")
    wait_for(lambda: len(server.replica_ids()) == 2, "new router with both replicas")
    assert ANSWERED in server.ask()


def test_a_killed_replica_is_replaced_while_the_other_answers(server, wait_for):
    before = server.replica_ids()
    server.find_process("ray::RankActor").kill()
    assert ANSWERED in server.ask()
    wait_for(lambda: server.replica_ids() - before and len(server.replica_ids()) == 2, "replacement")
    assert len(server.segments) == 2
    assert ANSWERED in server.ask()


def test_sigterm_ends_it_and_leaves_nothing(server):
    assert server.stop() == 0
    assert server.leftovers() == []
    with pytest.raises(httpx.ConnectError):
        httpx.get(server.url, trust_env=False)


@pytest.mark.parametrize("moment", ["serving kvasir-demo", " ray ", "Ctrl-C stops it"])
def test_ctrl_c_at_any_moment_ends_it_and_leaves_nothing(start, moment):
    serving = start("--mixed")
    serving.wait_for_output(moment)
    assert serving.press_ctrl_c() == 0
    assert serving.leftovers() == []


def test_two_signals_in_a_row_end_it_in_order_too(start):
    serving = start("--mixed")
    serving.wait_for_output(" ray ")
    serving.process.send_signal(signal.SIGINT)
    assert serving.stop(signal.SIGTERM) == 0
    assert serving.leftovers() == []


def test_replicas_and_router_end_with_a_server_that_is_killed(start, wait_for):
    serving = start("--mixed")
    serving.wait_until_ready()
    ours = [serving.find_process(title) for title in ("kvasir_router", "ray::RankActor", "ray::Controller")]
    serving.stop(signal.SIGKILL)
    wait_for(lambda: not any(map(is_alive, ours)), "end of the three")


def test_a_server_whose_ray_died_says_so_and_leaves_nothing(start):
    serving = start("--mixed")
    serving.wait_until_ready()
    serving.find_process("raylet/raylet").kill()
    assert serving.process.wait(END_S) == 1
    assert serving.output.splitlines()[-1] == "kvasir: error: Ray's raylet died"
    assert serving.leftovers() == []


def test_damaged_weights_are_told_in_one_line(start, tmp_path):
    demo = Path(__file__).parents[2] / "kvasir" / "demo_model"
    model = tmp_path / "damaged"
    model.mkdir()
    for file in demo.iterdir():
        (model / file.name).write_bytes(file.read_bytes())
    weights = model / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1000])
    serving = start(str(model), "--mixed")
    assert serving.process.wait(END_S) == 1
    errors = [line for line in serving.output.splitlines() if line.startswith("kvasir: error:")]
    assert len(errors) == 1
    assert "model.safetensors" in errors[0]
    assert serving.leftovers() == []


def test_a_key_is_asked_for_on_every_route_but_health(start):
    serving = start("--mixed", environment={"KVASIR_API_KEY": "sesame"})
    serving.wait_until_ready()
    assert httpx.get(f"{serving.url}/health", trust_env=False).status_code == 200
    assert httpx.get(f"{serving.url}/v1/models", trust_env=False).status_code == 401
    with_key = httpx.get(f"{serving.url}/v1/models", headers={"Authorization": "Bearer sesame"}, trust_env=False)
    assert with_key.status_code == 200
    assert "sesame" not in " ".join(serving.find_process("kvasir_router").cmdline())
