"""A fleet, or a whole router on a loopback port, over fake replicas in one event loop."""

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass

import httpx
import uvicorn
import zmq.asyncio
from prometheus_client import CollectorRegistry

from kvasir_protocol.view import ClusterView, ReplicaAddress
from kvasir_router.app import create_app
from kvasir_router.dispatch import Dispatcher
from kvasir_router.fleet import Fleet
from kvasir_router.links import LinkSettings, ReplicaLink
from kvasir_router.metrics import FrontDoorMetrics, MetricFamilies
from kvasir_router.patience import Patience
from kvasir_router.routing.policy import LeastLoaded
from kvasir_router.settings import RouterSettings
from tests.fakes.replica import DEADLINE_S, FakeReplica

SECRET = b"a secret that only the tests know"
MODEL_NAME = "test-model"

QUICK = Patience(
    ping_interval_s=0.05,
    reservation_s=0.3,
    handover_s=1.0,
    silence_s=0.3,
    max_silence_s=1.0,
    first_link_s=0.3,
    replica_wait_s=2.0,
)
"""Seconds as short as a busy test machine allows."""


@contextlib.asynccontextmanager
async def listening(replicas: Sequence[FakeReplica]) -> AsyncIterator[None]:
    """All replicas, acquainted with each other."""
    async with contextlib.AsyncExitStack() as stack:
        for replica in replicas:
            replica.peers = replicas
            await stack.enter_async_context(replica)
        yield


def view_of(*replicas: FakeReplica, version: int = 1) -> ClusterView:
    return ClusterView(version=version, replicas=tuple(replica.address for replica in replicas))


async def until_live(fleet: Fleet, num_replicas: int) -> None:
    async with asyncio.timeout(DEADLINE_S):
        while len(fleet.live()) != num_replicas:
            await fleet.wait_for_change()


@contextlib.asynccontextmanager
async def running_fleet(patience: Patience = QUICK, secret: bytes = SECRET) -> AsyncIterator[Fleet]:
    """A fleet without replicas yet."""
    context = zmq.asyncio.Context()
    settings = LinkSettings(context, secret, "router-test", patience.ping_interval_s)
    fleet = Fleet(lambda address, on_change: ReplicaLink(address, settings, on_change))
    try:
        yield fleet
    finally:
        await fleet.close()
        context.destroy(linger=0)


@dataclass(frozen=True, slots=True)
class Dispatching:
    dispatcher: Dispatcher
    fleet: Fleet
    registry: CollectorRegistry

    def count(self, name: str) -> float:
        """A counter of the router, by its name without _total."""
        return self.registry.get_sample_value(f"{name}_total", {"model_name": MODEL_NAME}) or 0.0


@contextlib.asynccontextmanager
async def dispatching(*replicas: FakeReplica, patience: Patience = QUICK) -> AsyncIterator[Dispatching]:
    """A dispatcher over replicas that are all up."""
    registry = CollectorRegistry()
    async with listening(replicas), running_fleet(patience) as fleet:
        fleet.apply(view_of(*replicas))
        await until_live(fleet, len(replicas))
        metrics = FrontDoorMetrics(MetricFamilies(registry), MODEL_NAME)
        dispatcher = Dispatcher(fleet=fleet, policy=LeastLoaded(), metrics=metrics, patience=patience)
        yield Dispatching(dispatcher, fleet, registry)


@dataclass(frozen=True, slots=True)
class Serving:
    """client: speaks to the router at url."""

    client: httpx.AsyncClient
    url: str

    async def until_live(self, num_replicas: int) -> None:
        async with asyncio.timeout(DEADLINE_S):
            while (await self.client.get("/health")).json()["live"] != num_replicas:
                await asyncio.sleep(0.005)

    async def metric(self, name: str) -> float:
        """Sum over all labels of a series, named as it is exported."""
        lines = (await self.client.get("/metrics")).text.splitlines()
        return sum(float(line.rpartition(" ")[2]) for line in lines if line.partition("{")[0] == name)


MakeSettings = Callable[[tuple[ReplicaAddress, ...]], RouterSettings]


@contextlib.asynccontextmanager
async def serving(
    make_settings: MakeSettings, *replicas: FakeReplica, patience: Patience = QUICK, api_key: str | None = None
) -> AsyncIterator[Serving]:
    """A router over replicas; make_settings is given their addresses. All that it names are up."""
    headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
    async with listening(replicas):
        settings = make_settings(tuple(replica.address for replica in replicas))
        async with (
            _http_server(settings, patience) as url,
            httpx.AsyncClient(base_url=url, headers=headers, timeout=DEADLINE_S) as client,
        ):
            server = Serving(client, url)
            await server.until_live(len(replicas))
            yield server


@contextlib.asynccontextmanager
async def _http_server(settings: RouterSettings, patience: Patience) -> AsyncIterator[str]:
    listener = socket.create_server(("127.0.0.1", 0))
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    app = create_app(settings, patience)
    server = uvicorn.Server(uvicorn.Config(app, log_config=None, ws="none", timeout_graceful_shutdown=1))
    running = asyncio.create_task(server.serve(sockets=[listener]))
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        server.should_exit = True
        await running
