import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import pytest
import zmq.asyncio

from kvasir_protocol.ids import ReplicaId
from kvasir_protocol.view import ClusterView, ReplicaAddress
from kvasir_router.view_source import ControllerView, StaticView, ViewSource
from tests.fakes.controller import FakeController
from tests.fakes.replica import DEADLINE_S
from tests.fakes.serving import SECRET

pytestmark = pytest.mark.anyio

ADDRESS = ReplicaAddress(replica_id=ReplicaId("mixed-0"), role="mixed", endpoint="tcp://127.0.0.1:1")
VIEW = ClusterView(version=3, replicas=(ADDRESS,))


class SeenViews:
    """Collects what a source tells."""

    def __init__(self) -> None:
        self.views: list[ClusterView] = []
        self._changed = asyncio.Event()

    def __call__(self, view: ClusterView) -> None:
        self.views.append(view)
        self._changed.set()

    async def until(self, condition: Callable[[list[ClusterView]], bool]) -> None:
        async with asyncio.timeout(DEADLINE_S):
            while not condition(self.views):
                self._changed.clear()
                await self._changed.wait()


@asynccontextmanager
async def followed(source: ViewSource) -> AsyncIterator[SeenViews]:
    seen = SeenViews()
    task = asyncio.create_task(source.follow(seen))
    try:
        yield seen
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


@asynccontextmanager
async def followed_controller(controller: FakeController) -> AsyncIterator[SeenViews]:
    context = zmq.asyncio.Context()
    async with controller:
        source = ControllerView(context, SECRET, controller.endpoint)
        async with followed(source) as seen:
            yield seen
    context.destroy(linger=0)


async def test_fixed_list_is_told_once_and_is_ready() -> None:
    async with followed(StaticView([ADDRESS])) as seen:
        await seen.until(lambda views: len(views) == 1)
    assert seen.views[0].replicas == (ADDRESS,)
    assert seen.views[0].phase == "ready"


async def test_controllers_view_is_told_when_it_changes() -> None:
    controller = FakeController(SECRET, VIEW)
    async with followed_controller(controller) as seen:
        await seen.until(lambda views: views == [VIEW])
        controller.view = ClusterView(version=4, replicas=(), phase="draining")
        await seen.until(lambda views: views == [VIEW, controller.view])


async def test_last_view_stands_while_the_controller_is_silent() -> None:
    controller = FakeController(SECRET, VIEW)
    async with followed_controller(controller) as seen:
        await seen.until(lambda views: views == [VIEW])
        controller.is_silent = True
        controller.asked.clear()
        await asyncio.wait_for(controller.asked.wait(), DEADLINE_S)
        assert seen.views == [VIEW]
