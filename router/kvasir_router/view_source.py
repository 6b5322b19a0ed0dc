"""Where the router learns which replicas there are: a fixed list, or the controller."""

import asyncio
import contextlib
import logging
from collections.abc import Callable, Sequence
from typing import Protocol

import zmq
import zmq.asyncio

from kvasir_protocol import wire
from kvasir_protocol.errors import WireError
from kvasir_protocol.messages import GetView, View
from kvasir_protocol.sockets import connect_client
from kvasir_protocol.view import ClusterView, ReplicaAddress

logger = logging.getLogger(__name__)

POLL_INTERVAL_S = 0.5

MAX_UNANSWERED_POLLS = 10
"""After 5 s of silence the socket is made anew, so that questions don't pile up for a controller that is gone."""

OnView = Callable[[ClusterView], None]


class ViewSource(Protocol):
    async def follow(self, on_view: OnView) -> None:
        """Call on_view with the view and with each later one, until cancelled."""
        ...


class StaticView:
    """The replicas named on the command line, for ever."""

    def __init__(self, replicas: Sequence[ReplicaAddress]) -> None:
        self._view = ClusterView(version=1, replicas=tuple(replicas))

    async def follow(self, on_view: OnView) -> None:
        on_view(self._view)
        await asyncio.Event().wait()


class ControllerView:
    """Asks the controller twice a second. While it is silent the last view stands."""

    def __init__(self, context: zmq.asyncio.Context, secret: bytes, endpoint: str) -> None:
        self._context = context
        self._secret = secret
        self._endpoint = endpoint
        self._view = ClusterView(version=-1, replicas=())

    async def follow(self, on_view: OnView) -> None:
        while True:
            socket = connect_client(self._context, self._secret, self._endpoint)
            try:
                await self._poll(socket, on_view)
            finally:
                socket.close(linger=0)

    async def _poll(self, socket: zmq.asyncio.Socket, on_view: OnView) -> None:
        """Ask and listen over one socket until the controller has been silent for too long."""
        num_unanswered = 0
        while num_unanswered < MAX_UNANSWERED_POLLS:
            await socket.send(wire.encode(GetView()))
            num_unanswered += 1
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(POLL_INTERVAL_S):
                    while True:
                        self._read(await socket.recv_multipart(), on_view)
                        num_unanswered = 0

    def _read(self, frames: list[bytes], on_view: OnView) -> None:
        try:
            message = wire.decode(frames[-1])
            if not isinstance(message, View):
                raise WireError(f"the controller sent {type(message).__name__}, not View")
        except WireError as error:
            logger.warning("message of the controller dropped: %s", error)
            return
        if message.view != self._view:
            self._view = message.view
            logger.info("view %d: %s, %d replicas", self._view.version, self._view.phase, len(self._view.replicas))
            on_view(self._view)
