"""`python -m kvasir_router`: one stateless router process."""

import argparse
import asyncio
import contextlib
import gc
import logging
import os
import signal
import socket
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import get_args

import uvicorn

from kvasir_protocol.config import HandoverConfig, RoutingPolicyName
from kvasir_protocol.errors import ConfigError, KvasirError
from kvasir_protocol.sockets import load_secret
from kvasir_router.app import create_app
from kvasir_router.patience import Patience
from kvasir_router.settings import RouterSettings, ServedModel, parse_replicas, read_api_keys

GRACE_S = 4
"""For running answers after SIGTERM; together with the closing of the links it stays below 5 s."""

LEAVE_S = 30.0
"""The same after SIGUSR1, when a successor has the socket: as long as the streams of a replica that leaves."""

CHECK_S = 0.5
"""Between two looks at what tells nothing by itself: whether the parent is gone, whether the last answer has ended."""

BACKLOG = 2048


def parse_arguments(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m kvasir_router", description="Serve OpenAI's API over replicas.")
    add_model = partial(parser.add_argument, action="append", required=True)
    add_model("--model", type=Path, help="directory with tokenizer.json and config.json; again for each model more")
    add_model("--served-model-name", help="the name that clients use, for each --model in its turn")
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--replicas", help="ROLE@tcp://HOST:PORT,… with role prefill, decode or mixed")
    source.add_argument("--controller", help="tcp://HOST:PORT of the controller, which tells the replicas")
    parser.add_argument("--secret-file", type=Path, required=True, help="the cluster secret, mode 0600")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=8000)
    parser.add_argument("--fd", type=int, help="listening socket inherited from the parent, instead of host and port")
    parser.add_argument("--api-key-file", type=Path, help="one key per line; without it everybody may ask")
    parser.add_argument("--policy", choices=get_args(RoutingPolicyName), default="least-loaded")
    parser.add_argument("--max-inflight", type=int, default=1024, help="streams at a time; more are refused with 429")
    parser.add_argument(
        "--handover-deadline-s",
        type=float,
        default=HandoverConfig().deadline_s,
        help="from reserving pages to their arrival",
    )
    parser.add_argument("--parent-pid", type=int, help="stop when this process, our parent, is gone")
    parser.add_argument("--log-level", default="info", choices=("debug", "info", "warning", "error"))
    return parser.parse_args(arguments)


def read_settings(options: argparse.Namespace) -> RouterSettings:
    """Raises ConfigError for a file that can't be read or a value that can't be."""
    if len(options.model) != len(options.served_model_name):
        raise ConfigError(f"{len(options.model)} times --model, {len(options.served_model_name)} times its name")
    return RouterSettings(
        models=tuple(map(ServedModel, options.model, options.served_model_name)),
        secret=load_secret(options.secret_file),
        replicas=parse_replicas(options.replicas) if options.replicas else (),
        controller_endpoint=options.controller,
        api_keys=read_api_keys(options.api_key_file) if options.api_key_file else (),
        policy=options.policy,
        max_inflight_requests=options.max_inflight,
    )


def listening_socket(options: argparse.Namespace) -> socket.socket:
    """The inherited one, or a new one on host and port. Raises ConfigError if the address can't be had."""
    listener = socket.socket(fileno=options.fd) if options.fd is not None else _bind(options.host, options.port)
    # Connections inherit it; without it the system may hold a frame back for 40 ms, until the former is acknowledged.
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return listener


def _bind(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family, backlog=BACKLOG)
    except OSError as error:
        raise ConfigError(f"can't listen on {host}:{port}: {error.strerror}") from error


async def serve(server: uvicorn.Server, listener: socket.socket, parent_pid: int | None) -> None:
    """Until SIGTERM or SIGINT, or until the parent is gone; after SIGUSR1, until what runs has ended."""
    asked_to_leave = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGUSR1, asked_to_leave.set)
    watchers = [asyncio.create_task(_leave(server, asked_to_leave))]
    if parent_pid is not None:
        watchers.append(asyncio.create_task(_stop_with_parent(server, parent_pid)))
    try:
        await server.serve(sockets=[listener])
    finally:
        for watcher in watchers:
            watcher.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await watcher


async def _leave(server: uvicorn.Server, asked: asyncio.Event) -> None:
    """Once asked to, take nothing new, let what runs end, and stop. SIGTERM still stops at once."""
    await asked.wait()
    if server.started:
        for listener in server.servers:
            listener.close()
        for connection in list(server.server_state.connections):
            connection.shutdown()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(LEAVE_S):
                while server.server_state.connections:
                    await asyncio.sleep(CHECK_S)
    server.should_exit = True


async def _stop_with_parent(server: uvicorn.Server, parent_pid: int) -> None:
    """An orphan gets another parent; that is how the death of a killed one is seen."""
    while os.getppid() == parent_pid:
        await asyncio.sleep(CHECK_S)
    logging.getLogger(__name__).warning("parent %d is gone, stopping", parent_pid)
    server.should_exit = True


def main(arguments: Sequence[str] | None = None) -> int:
    options = parse_arguments(sys.argv[1:] if arguments is None else arguments)
    logging.basicConfig(level=options.log_level.upper(), format="%(asctime)s router %(levelname)s %(message)s")
    try:
        handover = HandoverConfig(deadline_s=options.handover_deadline_s)
        app = create_app(read_settings(options), Patience(handover_s=handover.deadline_s))
        listener = listening_socket(options)
    except KvasirError as error:
        print(f"kvasir router: {error}", file=sys.stderr)
        return 2
    config = uvicorn.Config(
        app,
        loop="uvloop",
        http="httptools",
        ws="none",
        lifespan="on",
        access_log=False,
        log_config=None,
        server_header=False,
        proxy_headers=False,
        timeout_graceful_shutdown=GRACE_S,
    )
    server = uvicorn.Server(config)
    # What is there now stays: looking through it again would stop all streams for 60 ms each time.
    gc.collect()
    gc.freeze()
    with asyncio.Runner(loop_factory=config.get_loop_factory()) as runner:
        runner.run(serve(server, listener, options.parent_pid))
    return 0


if __name__ == "__main__":
    sys.exit(main())
