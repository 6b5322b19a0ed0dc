"""A blocking stand-in for a router, for tests that speak to real replicas."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from socket import create_connection
from typing import Any, TypeVar

import zmq

from kvasir_protocol.events import TokenOutput
from kvasir_protocol.ids import RequestId
from kvasir_protocol.messages import (
    HandOver,
    HandoverTicket,
    Message,
    Ping,
    PushGranted,
    PushPages,
    Reserve,
    Reserved,
    Stats,
    Submit,
    Tokens,
)
from kvasir_protocol.request import GenerationRequest
from kvasir_protocol.sockets import connect_client
from kvasir_protocol.wire import decode, encode
from kvasir_workers.kv.transfer.page_stream import HELLO, LENGTHS
from kvasir_workers.kv.transfer.sealing import PageSeal, proof_of

M = TypeVar("M")
DEADLINE_S = 30.0


class WireClient:
    """One connection to one replica; keeps what arrives until somebody asks for it."""

    def __init__(self, endpoint: str, secret: bytes) -> None:
        self._context: Any = zmq.Context()
        self._socket = connect_client(self._context, secret, endpoint)
        self._received: list[Message] = []

    def send(self, message: Message) -> None:
        self._socket.send(encode(message))

    def send_raw(self, *frames: bytes) -> None:
        self._socket.send_multipart(frames)

    def expect(self, kind: type[M], condition: Callable[[M], bool] = lambda _: True) -> M:
        """The first message of a kind for which the condition holds; fails after a deadline."""
        deadline = time.monotonic() + DEADLINE_S
        while True:
            for index, message in enumerate(self._received):
                if isinstance(message, kind) and condition(message):
                    del self._received[index]
                    return message
            remaining_ms = int((deadline - time.monotonic()) * 1000)
            assert remaining_ms > 0 and self._socket.poll(remaining_ms), f"no {kind.__name__}; got {self._received}"
            self._received.append(decode(self._socket.recv()))

    def outputs_of(self, request_id: RequestId) -> list[TokenOutput]:
        """All outputs of a request up to the one that ends it."""
        outputs: list[TokenOutput] = []
        while not outputs or outputs[-1].finish_reason is None:
            batch = self.expect(Tokens, lambda m: any(output.request_id == request_id for output in m.outputs))
            outputs += [output for output in batch.outputs if output.request_id == request_id]
            others = tuple(output for output in batch.outputs if output.request_id != request_id)
            if others:
                self._received.append(Tokens(outputs=others))
        return outputs

    def generate(self, request: GenerationRequest) -> list[int]:
        self.send(Submit(request=request))
        return token_ids(self.outputs_of(request.request_id))

    def hears_anything(self, wait_s: float) -> bool:
        """Whether a Ping is answered within wait_s."""
        self.send(Ping())
        return bool(self._socket.poll(int(wait_s * 1000)))

    def stats(self) -> Stats:
        self.send(Ping())
        return self.expect(Stats)

    def settled_stats(self) -> Stats:
        """When nothing runs any more and no step is on its way that could still write into a page."""
        for _ in range(10_000):
            told = self.stats()
            if not told.stats.num_running and not told.stats.num_used_pages:
                return told
        raise AssertionError(f"it does not come to rest: {told.stats}")

    def close(self) -> None:
        self._socket.close(linger=0)
        self._context.term()


@contextmanager
def clients(secret: bytes) -> Iterator[Callable[[str], WireClient]]:
    """What connects to an endpoint; all connections are closed after the block."""
    connected: list[WireClient] = []

    def connect(endpoint: str) -> WireClient:
        connected.append(WireClient(endpoint, secret))
        return connected[-1]

    try:
        yield connect
    finally:
        for client in connected:
            client.close()


class PageClient:
    """A writer's connection to where a replica takes the contents of pages."""

    def __init__(self, granted: PushGranted) -> None:
        host, _, port = granted.page_endpoint.removeprefix("tcp://").rpartition(":")
        self._connection = create_connection((host, int(port)), DEADLINE_S)
        self._seal = PageSeal(granted.page_key)
        self.push_raw(HELLO.pack(granted.generation, proof_of(granted.page_key)))

    def push(self, message: PushPages, content: bytes) -> None:
        header = encode(message)
        sealed = self._seal.seal(header, memoryview(content))
        self.push_raw(LENGTHS.pack(len(header), len(sealed)) + header + sealed)

    def push_raw(self, content: bytes) -> None:
        self._connection.sendall(content)

    def expect_closed(self) -> None:
        """The replica has closed the connection."""
        with suppress(ConnectionResetError):
            assert self._connection.recv(1) == b""

    def close(self) -> None:
        self._connection.close()


def token_ids(outputs: list[TokenOutput]) -> list[int]:
    return [token_id for output in outputs for token_id in output.token_ids]


def submit_to_leave(prefill: WireClient, request: GenerationRequest, ticket: HandoverTicket) -> None:
    """Have the prompt computed, and its pages brought to where the ticket says."""
    prefill.send(Submit(request=request, ticket_within_s=10.0))
    prefill.send(HandOver(request_id=request.request_id, ticket=ticket))


def hand_over(
    request: GenerationRequest, prefill: WireClient, decode_side: WireClient, deadline_s: float = 10.0
) -> tuple[list[TokenOutput], list[TokenOutput]]:
    """Generate on two replicas: what the prefill side gave, and what the decode side gave."""
    decode_side.send(Reserve(request=request, deadline_s=deadline_s))
    reserved = decode_side.expect(Reserved, lambda m: m.request_id == request.request_id)
    submit_to_leave(prefill, request, reserved.ticket)
    return prefill.outputs_of(request.request_id), decode_side.outputs_of(request.request_id)
