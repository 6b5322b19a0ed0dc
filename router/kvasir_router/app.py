"""Builds the router: parts, routes and lifespan."""

import asyncio
import contextlib
import logging
import os
import socket
from collections.abc import AsyncIterator, Callable

import zmq.asyncio
from fastapi import APIRouter, FastAPI
from prometheus_client import CollectorRegistry
from starlette.types import ASGIApp

from kvasir_protocol.view import ReplicaAddress
from kvasir_router.dispatch import Dispatcher
from kvasir_router.express import Express
from kvasir_router.fleet import Fleet
from kvasir_router.front_door import VERSION, FrontDoor, House
from kvasir_router.gate import ApiKeys, Gate
from kvasir_router.http_errors import install_error_handlers
from kvasir_router.limits import InflightLimit
from kvasir_router.links import LinkSettings, ReplicaLink
from kvasir_router.metrics import FrontDoorMetrics, MetricFamilies, ReplicaCollector
from kvasir_router.openai.routes import openai_lanes, openai_routes
from kvasir_router.operations import operations_routes
from kvasir_router.patience import Patience
from kvasir_router.routing.policy import make_policy
from kvasir_router.settings import RouterSettings, ServedModel, body_limit_bytes
from kvasir_router.tokenise import TextCodec
from kvasir_router.view_source import ControllerView, StaticView, ViewSource

logger = logging.getLogger(__name__)


def create_app(settings: RouterSettings, patience: Patience) -> ASGIApp:
    """The router as an ASGI application. Its links open when the application starts and close when it stops.

    Raises CheckpointError if a model's directory has no tokenizer.
    """
    context = zmq.asyncio.Context()
    sender = f"router-{socket.gethostname()}-{os.getpid()}"
    link_settings = LinkSettings(context, settings.secret, sender, patience.ping_interval_s)

    def open_link(address: ReplicaAddress, on_change: Callable[[], None]) -> ReplicaLink:
        return ReplicaLink(address, link_settings, on_change)

    registry, limit = CollectorRegistry(), InflightLimit(settings.max_inflight_requests)
    families = MetricFamilies(registry)

    def open_door(model: ServedModel) -> FrontDoor:
        metrics, fleet = FrontDoorMetrics(families, model.name), Fleet(open_link)
        policy = make_policy(settings.policy)
        return FrontDoor(
            served_name=model.name,
            codec=TextCodec.from_directory(model.directory),
            fleet=fleet,
            dispatcher=Dispatcher(fleet=fleet, policy=policy, metrics=metrics, patience=patience),
            limit=limit,
            metrics=metrics,
        )

    house = House(doors=tuple(map(open_door, settings.models)), limit=limit, registry=registry)
    registry.register(ReplicaCollector({door.served_name: door.fleet for door in house.doors}))
    routes = openai_routes(house)
    app = Express(_fastapi(house, routes, _view_source(settings, context), context), openai_lanes(routes))
    # Outside of the application's own error handling, so that every answer passes the gate, a 500 as well.
    max_body_bytes = settings.max_body_bytes or body_limit_bytes(house.context_tokens)
    return Gate(app, ApiKeys(settings.api_keys), max_body_bytes, families)


def _view_source(settings: RouterSettings, context: zmq.asyncio.Context) -> ViewSource:
    if settings.controller_endpoint is None:
        return StaticView(settings.replicas)
    return ControllerView(context, settings.secret, settings.controller_endpoint)


def _fastapi(house: House, routes: APIRouter, view_source: ViewSource, context: zmq.asyncio.Context) -> FastAPI:
    @contextlib.asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        following = asyncio.create_task(view_source.follow(house.apply), name="view of the cluster")
        following.add_done_callback(_log_failure)
        try:
            yield
        finally:
            following.cancel()
            await asyncio.gather(following, return_exceptions=True)
            await house.close()
            context.destroy(linger=0)

    # The documentation pages would load scripts from elsewhere; /openapi.json stays.
    app = FastAPI(title="Kvasir", version=VERSION, lifespan=lifespan, docs_url=None, redoc_url=None)
    app.include_router(routes)
    app.include_router(operations_routes(house))
    install_error_handlers(app)
    return app


def _log_failure(task: asyncio.Task[None]) -> None:
    if not task.cancelled() and (error := task.exception()) is not None:
        logger.error("no longer following the cluster's view", exc_info=error)
