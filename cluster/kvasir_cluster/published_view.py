"""What routers are shown of the cluster, and where they ask for it."""

import dataclasses
import time

from kvasir_cluster.hosts import own_address
from kvasir_cluster.listening import find_control_port
from kvasir_cluster.view_server import ViewServer
from kvasir_protocol.errors import ConfigError
from kvasir_protocol.view import ClusterView, ReplicaAddress


class PublishedView:
    """The view of the moment, served once `serve` was called. host "": as Ray knows this one."""

    def __init__(self, secret: bytes, host: str, bind_s: float) -> None:
        """bind_s: as ViewServer's patience."""
        self._secret = secret
        self._host = host
        self._bind_s = bind_s
        # Milliseconds since 1970: a restarted controller's first version is above its predecessor's last.
        self._view = ClusterView(version=time.time_ns() // 1_000_000, replicas=(), phase="starting")
        self._server: ViewServer | None = None

    @property
    def phase(self) -> str:
        return self._view.phase

    @property
    def endpoint(self) -> str | None:
        """None until it is served."""
        return None if self._server is None else self._server.endpoint

    def serve(self, port: int, *, may_move: bool) -> int:
        """Let routers ask from now on; the port at which they may. port 0: any.

        may_move: to another port, if that one is somebody else's by now; else that raises ConfigError.
        """
        host = self._host or own_address()
        port = port or find_control_port(host)
        try:
            self._server = self._listen(host, port)
        except ConfigError:
            if not may_move:
                raise
            port = find_control_port(host)
            self._server = self._listen(host, port)
        self._server.start()
        return port

    def _listen(self, host: str, port: int) -> ViewServer:
        return ViewServer(self._secret, host, port, lambda: self._view, self._bind_s)

    def show(self, replicas: tuple[ReplicaAddress, ...], phase: str) -> list[ReplicaAddress]:
        """From now on these; those that were not shown before. It has a new version only if it is another."""
        before = {address.replica_id for address in self._view.replicas}
        view = dataclasses.replace(self._view, replicas=replicas, phase=phase)
        if view != self._view:
            self._view = dataclasses.replace(view, version=self._view.version + 1)
        return [address for address in replicas if address.replica_id not in before]

    def tell_phase(self, phase: str) -> None:
        """Without a new version: for who asks about the cluster, not for routers."""
        self._view = dataclasses.replace(self._view, phase=phase)

    def stop(self) -> None:
        """Close the port, if there is one."""
        if self._server is not None:
            self._server.stop()
