"""A controller that tells routers a view, over the real wire."""

import asyncio
from typing import Any

import zmq
import zmq.asyncio

from kvasir_protocol import wire
from kvasir_protocol.messages import GetView, View
from kvasir_protocol.sockets import bind_server, start_gatekeeper
from kvasir_protocol.view import ClusterView


class FakeController:
    """Answers every GetView with `view`; is_silent: with nothing."""

    def __init__(self, secret: bytes, view: ClusterView) -> None:
        self.view = view
        self.is_silent = False
        self.endpoint = ""
        self.asked = asyncio.Event()
        self._secret = secret

    async def __aenter__(self) -> "FakeController":
        self._context: zmq.Context[Any] = zmq.Context()
        self._gatekeeper = start_gatekeeper(self._context, self._secret)
        self._socket, self.endpoint = bind_server(zmq.asyncio.Context(self._context), self._secret, "127.0.0.1", 0)
        self._serving = asyncio.create_task(self._serve())
        return self

    async def __aexit__(self, *_: object) -> None:
        self._serving.cancel()
        self._socket.close(linger=0)
        await asyncio.to_thread(self._gatekeeper.stop)
        self._context.destroy(linger=0)

    async def _serve(self) -> None:
        while True:
            peer, frame = await self._socket.recv_multipart()
            assert isinstance(wire.decode(frame), GetView)
            self.asked.set()
            if not self.is_silent:
                await self._socket.send_multipart([peer, wire.encode(View(view=self.view))])
