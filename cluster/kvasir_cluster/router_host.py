"""The Ray actor that keeps a router running on its host."""

import threading
import time
from dataclasses import dataclass
from socket import socket

from kvasir_cluster.listening import listen, url_of
from kvasir_cluster.router_process import DRAIN_S, RouterOrder, RouterProcess, router_command
from kvasir_protocol.errors import ConfigError, KvasirError

WATCH_S = 0.5
STOP_POLL_S = 0.05

RETRY_S = 30.0
"""Between tries of a router that can't serve: what it lacks (the model's folder, memory) may have come."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RouterState:
    """url: where clients reach it. num_live: replicas that it reaches, None while it doesn't answer.

    failure: why it can't serve; it is tried again now and then, and when its settings change.
    """

    url: str
    num_live: int | None
    failure: str | None = None


class RouterHost:
    """A router process of its own, started again when it dies, and with other settings without a refused connection."""

    def __init__(self, address: str, retry_s: float = RETRY_S) -> None:
        """address: of this host, for routers that are told no other."""
        self._host_address = address
        self._retry_s = retry_s
        self._order: RouterOrder | None = None
        self._listener: socket | None = None
        self._asked_address: tuple[str, int] | None = None
        self._router: RouterProcess | None = None
        self._leaving: list[RouterProcess] = []
        self._failure: str | None = None
        self._failed_at_s = 0.0
        self._lock = threading.Lock()
        self._stopping = threading.Event()
        threading.Thread(target=self._watch, name="router-host", daemon=True).start()

    def serve(self, order: RouterOrder) -> RouterState:
        """Have a router that serves as ordered; asked again with the same order, only tell how it fares."""
        with self._lock:
            if order != self._order and not self._stopping.is_set():
                self._follow(order)
            router, failure = self._router, self._failure
        health = router.health() if router is not None and failure is None else None
        url = url_of(self._listener) if self._listener is not None else ""
        return RouterState(url=url, num_live=health.num_live if health is not None else None, failure=failure)

    def _follow(self, order: RouterOrder) -> None:
        try:
            listener = self._listen(order)
        except ConfigError as error:
            self._order = None  # as it was before is another order, too
            self._fail(error)
            return
        predecessor = self._router
        # The newcomer shares the socket, so that whoever connects meanwhile is served by one or the other.
        self._start(order, listener)
        if predecessor is not None:
            predecessor.ask_to_leave()
            self._leaving.append(predecessor)

    def _start(self, order: RouterOrder, listener: socket) -> None:
        self._router = RouterProcess(router_command(order, listener), listener)
        self._router.start()
        self._order, self._failure = order, None

    def _fail(self, error: KvasirError) -> None:
        self._failure, self._failed_at_s = str(error), time.monotonic()

    def _listen(self, order: RouterOrder) -> socket:
        """The socket that is there already, or a new one if it is to be at another address."""
        settings = order.router
        address = (settings.host or self._host_address, settings.port)
        if self._listener is None or self._asked_address != address:
            listener = listen(*address)
            if self._listener is not None:
                self._listener.close()
            self._listener, self._asked_address = listener, address
        return self._listener

    def _watch(self) -> None:
        while not self._stopping.wait(WATCH_S):
            with self._lock:
                self._leaving = [router for router in self._leaving if not router.has_stopped()]
                if self._failure is None:
                    self._keep_alive()
                elif self._order is not None and time.monotonic() - self._failed_at_s >= self._retry_s:
                    assert self._listener is not None, "an order was followed, so there is a socket"
                    self._start(self._order, self._listener)

    def _keep_alive(self) -> None:
        try:
            if self._router is not None:
                self._router.keep_alive()
        except KvasirError as error:
            self._fail(error)

    def stop(self) -> None:
        """Let running answers end; returns when no router is left, or the time for that is over."""
        self._stopping.set()
        with self._lock:
            routers = [*self._leaving, *([self._router] if self._router is not None else [])]
            for router in routers:
                router.ask_to_stop()
        give_up_at = time.monotonic() + DRAIN_S
        while time.monotonic() < give_up_at and not all(router.has_stopped() for router in routers):
            time.sleep(STOP_POLL_S)
        if self._listener is not None:
            self._listener.close()
