"""`python -m kvasir_router` as a process."""

import asyncio
import os
import signal
import socket
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import httpx
import pytest

from kvasir_router.__main__ import listening_socket, main, parse_arguments
from tests.fakes.replica import DEADLINE_S, FakeReplica
from tests.fakes.serving import MODEL_NAME, SECRET, listening
from tests.integration.router.conftest import TEXT, MakeReplica

pytestmark = pytest.mark.anyio

Command = Callable[[FakeReplica], list[str]]

CHAT = {"messages": [{"role": "user", "content": "hi"}]}
START_S = END_S = 30.0

ORPHAN_MAKER = """
import os, subprocess, sys, time
router = subprocess.Popen([*sys.argv[1:], "--parent-pid", str(os.getpid())])
print(router.pid, flush=True)
time.sleep(60)
"""


@pytest.fixture
def command(model_directory: Path, tmp_path: Path) -> Command:
    secret_file = tmp_path / "secret"
    secret_file.write_bytes(SECRET)
    secret_file.chmod(0o600)

    def make(replica: FakeReplica) -> list[str]:
        return [
            *(sys.executable, "-m", "kvasir_router", "--model", str(model_directory)),
            *("--served-model-name", MODEL_NAME, "--secret-file", str(secret_file), "--log-level", "warning"),
            *("--replicas", f"mixed@{replica.endpoint}"),
        ]

    return make


async def until_healthy(client: httpx.AsyncClient) -> None:
    async with asyncio.timeout(START_S):
        while True:
            try:
                if (await client.get("/health")).status_code == 200:
                    return
            except httpx.TransportError:
                pass
            await asyncio.sleep(0.05)


@asynccontextmanager
async def running(
    arguments: list[str], port: int, **options: object
) -> AsyncIterator[tuple[asyncio.subprocess.Process, httpx.AsyncClient]]:
    process = await asyncio.create_subprocess_exec(*arguments, **options)  # type: ignore[arg-type]
    try:
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", timeout=DEADLINE_S) as client:
            yield process, client
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


async def test_router_serves_on_its_own_port_and_stops_on_sigterm(
    make_replica: MakeReplica, command: Command, free_port: int
) -> None:
    mixed = make_replica("mixed-0")
    async with listening([mixed]), running([*command(mixed), "--port", str(free_port)], free_port) as (process, client):
        await until_healthy(client)
        answer = (await client.post("/v1/chat/completions", json=CHAT)).json()
        assert answer["choices"][0]["message"]["content"] == TEXT
        process.send_signal(signal.SIGTERM)
        assert await asyncio.wait_for(process.wait(), END_S) in (0, -signal.SIGTERM)


async def test_stopping_router_ends_a_stream_that_does_not_end_by_itself(
    make_replica: MakeReplica, command: Command, free_port: int
) -> None:
    mixed = make_replica("mixed-0")
    mixed.faults.pause_at = 1
    async with listening([mixed]), running([*command(mixed), "--port", str(free_port)], free_port) as (process, client):
        await until_healthy(client)
        async with client.stream("POST", "/v1/chat/completions", json={**CHAT, "stream": True}) as response:
            chunks = response.aiter_bytes()
            assert TEXT[:3].encode() in await anext(chunks)
            process.send_signal(signal.SIGTERM)
            rest = b"".join([chunk async for chunk in chunks])
            assert b"this router is stopping" in rest
            await asyncio.wait_for(process.wait(), END_S)
        await mixed.until(lambda replica: not replica.held)


async def test_router_with_a_successor_takes_nothing_new_and_ends_its_streams_whole(
    make_replica: MakeReplica, command: Command, free_port: int
) -> None:
    mixed = make_replica("mixed-0")
    mixed.faults.pause_at = 1
    async with listening([mixed]), running([*command(mixed), "--port", str(free_port)], free_port) as (process, client):
        await until_healthy(client)
        async with client.stream("POST", "/v1/chat/completions", json={**CHAT, "stream": True}) as response:
            chunks = response.aiter_bytes()
            assert TEXT[:3].encode() in await anext(chunks)
            process.send_signal(signal.SIGUSR1)
            await asyncio.wait_for(until_refused(free_port), DEADLINE_S)
            mixed.faults.resumed.set()
            rest = b"".join([chunk async for chunk in chunks])
            assert rest.endswith(b"data: [DONE]\n\n")
        assert await asyncio.wait_for(process.wait(), DEADLINE_S) == 0


async def until_refused(port: int) -> None:
    while True:
        try:
            socket.create_connection(("127.0.0.1", port)).close()
        except ConnectionRefusedError:
            return
        await asyncio.sleep(0.05)


async def test_router_takes_a_listening_socket_of_its_parent(make_replica: MakeReplica, command: Command) -> None:
    mixed = make_replica("mixed-0")
    with socket.create_server(("127.0.0.1", 0)) as listener:
        descriptor, port = listener.fileno(), listener.getsockname()[1]
        async with listening([mixed]):
            arguments = [*command(mixed), "--fd", str(descriptor)]
            async with running(arguments, port, pass_fds=(descriptor,)) as (_, client):
                await until_healthy(client)


async def test_router_stops_when_its_parent_is_killed(
    make_replica: MakeReplica, command: Command, free_port: int
) -> None:
    mixed = make_replica("mixed-0")
    async with listening([mixed]):
        arguments = [sys.executable, "-c", ORPHAN_MAKER, *command(mixed), "--port", str(free_port)]
        async with running(arguments, free_port, stdout=asyncio.subprocess.PIPE) as (parent, client):
            assert parent.stdout is not None
            router_pid = int(await parent.stdout.readline())
            await until_healthy(client)
            parent.kill()
            await parent.wait()
            await asyncio.wait_for(_gone(router_pid), DEADLINE_S)


async def _gone(process_id: int) -> None:
    """A zombie that nobody reaps counts as gone."""
    while os.path.exists(f"/proc/{process_id}/stat"):
        if ") Z " in Path(f"/proc/{process_id}/stat").read_text():
            return
        await asyncio.sleep(0.05)


async def test_frames_are_not_held_back_by_the_system(make_replica: MakeReplica, command: Command) -> None:
    options = parse_arguments([*command(make_replica("mixed-0"))[3:], "--port", "0"])
    with listening_socket(options) as listener:
        assert listener.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--replicas", "tcp://127.0.0.1:1"], "ROLE@tcp://HOST:PORT"),
        (["--controller", "tcp://127.0.0.1:1", "--api-key-file", "/nowhere/keys"], "can't read the API keys"),
        (["--controller", "tcp://127.0.0.1:1", "--handover-deadline-s", "0"], "deadline_s must be"),
        (["--controller", "tcp://127.0.0.1:1", "--model", "/b"], "2 times --model, 1 times its name"),
        (
            ["--controller", "tcp://127.0.0.1:1", "--model", "/nowhere", "--served-model-name", "b"],
            "no model directory",
        ),
        (
            ["--controller", "tcp://127.0.0.1:1", "--model", "/nowhere", "--served-model-name", MODEL_NAME],
            "each by a name of its own",
        ),
        (["--controller", "tcp://127.0.0.1:1", "--secret-file", "/nowhere/secret"], "can't read the cluster secret"),
    ],
)
async def test_settings_that_cannot_be_are_told_in_one_line(
    make_replica: MakeReplica,
    command: Command,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    message: str,
) -> None:
    common = command(make_replica("mixed-0"))[3:-2]
    assert main([*common, *arguments]) == 2
    captured = capsys.readouterr().err
    assert message in captured
    assert captured.count("\n") == 1
