"""Replicas as processes of their own, and a line to each."""

import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TypeVar

import yaml
import zmq

from kvasir_protocol.config import ReplicaConfig
from kvasir_protocol.events import ReplicaStats, TokenOutput
from kvasir_protocol.ids import RequestId
from kvasir_protocol.messages import (
    HandOver,
    Message,
    Ping,
    Rejected,
    Reserve,
    Reserved,
    ReserveRefused,
    Stats,
    Submit,
    Tokens,
)
from kvasir_protocol.request import GenerationRequest
from kvasir_protocol.sockets import connect_client, load_or_create_secret
from kvasir_protocol.wire import decode, encode

M = TypeVar("M")

_PATIENCE_S = 30.0

HANDOVER_S = 10.0


class ReplicaLine:
    """Asks one replica as a router would, and waits for the answer. Raises TimeoutError if none comes."""

    def __init__(self, endpoint: str, secret: bytes) -> None:
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._socket = connect_client(self._context, secret, endpoint)

    def send(self, message: Message) -> None:
        self._socket.send(encode(message))

    def expect(self, kind: type[M]) -> M:
        """The next message of a kind; others are passed over."""
        deadline = time.monotonic() + _PATIENCE_S
        while self._socket.poll(max(0, int((deadline - time.monotonic()) * 1000))):
            message = decode(self._socket.recv())
            if isinstance(message, kind):
                return message
            if isinstance(message, Rejected | ReserveRefused):
                raise RuntimeError(f"the replica refused: {message}")
        raise TimeoutError(f"no {kind.__name__} within {_PATIENCE_S:g} s")

    def outputs(self, request_id: RequestId) -> Iterator[tuple[float, TokenOutput]]:
        """Each output of a request up to its last, and when it came (perf_counter)."""
        while True:
            told = self.expect(Tokens)
            now = time.perf_counter()
            for output in told.outputs:
                if output.request_id == request_id:
                    yield now, output
                    if output.finish_reason is not None:
                        return

    def stats(self) -> ReplicaStats:
        self.send(Ping())
        return self.expect(Stats).stats

    def close(self) -> None:
        self._socket.close(linger=0)
        self._context.term()


def hand_over(
    request: GenerationRequest, prefill: ReplicaLine, decode_side: ReplicaLine
) -> tuple[list[float], list[float]]:
    """When each token came: of the prefill side, and of the decode side."""
    decode_side.send(Reserve(request=request, deadline_s=HANDOVER_S))
    prefill.send(Submit(request=request, ticket_within_s=HANDOVER_S))
    prefill.send(HandOver(request_id=request.request_id, ticket=decode_side.expect(Reserved).ticket))
    first = [now for now, output in prefill.outputs(request.request_id) if output.token_ids]
    rest = [now for now, output in decode_side.outputs(request.request_id) if output.token_ids]
    return first, rest


@contextmanager
def replica_processes(configs: Sequence[ReplicaConfig]) -> Iterator[tuple[list[str], Path]]:
    """Start them, all at once; their endpoints in order, and the file of the secret. They end with the block."""
    with tempfile.TemporaryDirectory(prefix="kvasir-bench-") as directory:
        secret_file = Path(directory) / "secret"
        load_or_create_secret(secret_file)
        processes: list[subprocess.Popen[str]] = []
        try:
            for index, config in enumerate(configs):
                file = Path(directory) / f"{index}.yaml"
                file.write_text(yaml.safe_dump(_plain(asdict(config))))
                command = [sys.executable, "-m", "kvasir_workers.replica"]
                command += ["--config", str(file), "--secret-file", str(secret_file)]
                processes.append(subprocess.Popen(command, stdout=subprocess.PIPE, text=True))
            yield [_endpoint(process) for process in processes], secret_file
        finally:
            for process in processes:
                process.terminate()
            for process in processes:
                process.communicate()


def _plain(tree: object) -> object:
    if isinstance(tree, dict):
        return {key: _plain(value) for key, value in tree.items()}
    return [_plain(item) for item in tree] if isinstance(tree, tuple) else tree


def _endpoint(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    line = process.stdout.readline()
    if " listens on " not in line:
        raise RuntimeError(f"the replica did not start: {line or 'it said nothing'}")
    return line.split(" listens on ")[1].strip()


@contextmanager
def lines_to(endpoints: Sequence[str], secret: bytes) -> Iterator[list[ReplicaLine]]:
    lines = [ReplicaLine(endpoint, secret) for endpoint in endpoints]
    try:
        yield lines
    finally:
        for line in lines:
            line.close()


def timed(action: Callable[[], object]) -> float:
    """Seconds that it takes."""
    started_at = time.perf_counter()
    action()
    return time.perf_counter() - started_at
