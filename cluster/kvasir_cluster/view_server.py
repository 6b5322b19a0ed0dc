"""Tells routers which replicas there are."""

import logging
import threading
import time
from collections.abc import Callable

import zmq

from kvasir_protocol.errors import ConfigError, WireError
from kvasir_protocol.messages import GetView, View
from kvasir_protocol.sockets import bind_server, start_gatekeeper
from kvasir_protocol.view import ClusterView
from kvasir_protocol.wire import decode, encode

log = logging.getLogger(__name__)

POLL_MS = 100


class ViewServer:
    """Answers each GetView with the view of that moment, from a thread of its own."""

    def __init__(
        self, secret: bytes, host: str, port: int, read_view: Callable[[], ClusterView], patience_s: float
    ) -> None:
        """Listen; port 0 lets the system choose. patience_s: a restarted controller may have to wait until the system
        has given its predecessor's port back. Raises ConfigError if the address can't be had.
        """
        self._read_view = read_view
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._gatekeeper = start_gatekeeper(self._context, secret)
        try:
            self._socket, self.endpoint = self._bind(secret, host, port, patience_s)
        except ConfigError:
            self._end_context()
            raise
        self.num_bad_frames = 0
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._serve, name="view-server", daemon=True)

    def _bind(self, secret: bytes, host: str, port: int, patience_s: float) -> tuple[zmq.Socket[bytes], str]:
        give_up_at = time.monotonic() + patience_s
        while True:
            try:
                return bind_server(self._context, secret, host, port)
            except ConfigError:
                if time.monotonic() > give_up_at:
                    raise
                time.sleep(0.1)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """Close the socket and join the thread."""
        self._stopping.set()
        self._thread.join()
        self._socket.close()
        self._end_context()

    def _end_context(self) -> None:
        self._gatekeeper.stop()
        self._context.term()

    def _serve(self) -> None:
        while not self._stopping.is_set():
            if self._socket.poll(POLL_MS):
                self._answer(self._socket.recv_multipart())

    def _answer(self, frames: list[bytes]) -> None:
        try:
            if len(frames) != 2:
                raise WireError(f"expected two frames, got {len(frames)}")
            message = decode(frames[1])
            if not isinstance(message, GetView):
                raise WireError(f"expected GetView, got {type(message).__name__}")
        except WireError as error:
            self.num_bad_frames += 1
            log.warning("dropped a bad frame (%d so far): %s", self.num_bad_frames, error)
            return
        try:
            self._socket.send_multipart([frames[0], encode(View(view=self._read_view()))])
        except zmq.ZMQError as error:
            log.debug("a router left before its answer: %s", error)
