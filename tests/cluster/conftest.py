"""A real Ray on this host, and a cluster of fake replicas in it."""

import contextlib
import os
import signal
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import zmq

from kvasir_cluster.local_ray import LocalRay, settle_ray
from kvasir_cluster.plan import Pacing
from kvasir_cluster.report import Progress
from kvasir_cluster.spec import ControllerSpec, Timings
from kvasir_protocol.config import ClusterConfig, ModelConfig, PoolConfig, RouterConfig
from kvasir_protocol.messages import GetView, View
from kvasir_protocol.sockets import connect_client
from kvasir_protocol.view import ClusterView
from kvasir_protocol.wire import decode, encode

settle_ray()
# The processes of the cluster import the fake replica by the same name as this one.
sys.path.insert(0, str(Path(__file__).parent))
os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, (sys.path[0], os.environ.get("PYTHONPATH"))))

import ray  # noqa: E402
from fake_replica import build_fake  # noqa: E402
from ray.exceptions import RayActorError  # noqa: E402

from kvasir_cluster.creation import create_controller  # noqa: E402

SECRET = b"s" * 32
DEADLINE_S = 40.0


def poll(question: Callable[[], Any], what: str) -> Any:
    """The first true answer. Fails the test when there is none in time."""
    give_up_at = time.monotonic() + DEADLINE_S
    while time.monotonic() < give_up_at:
        if answer := question():
            return answer
        time.sleep(0.05)
    raise AssertionError(f"no {what} within {DEADLINE_S:g} s")


class FakeCluster:
    """One controller over fake replicas, asked as `kvasir serve` and a router ask."""

    def __init__(
        self, orders: Path, *pools: PoolConfig, port: int, timings: Timings, places_routers: bool = False
    ) -> None:
        self.orders = orders
        model, router = ModelConfig(path=str(orders), served_name="fake"), RouterConfig(host="127.0.0.1", port=0)
        config = ClusterConfig(model=model, pools=pools, router=router)
        self.spec = ControllerSpec(
            instance=uuid.uuid4().hex[:6],
            wish=config,
            config=config,
            secret=SECRET,
            build_rank=build_fake,
            replica_host="127.0.0.1",
            view_host="127.0.0.1",
            view_port=port,
            places_routers=places_routers,
            timings=timings,
            pacing=Pacing(first_pause_s=0.1),
        )
        self.controller = create_controller(self.spec, detached=False)
        self._context: zmq.Context[Any] = zmq.Context()
        self._router = connect_client(self._context, SECRET, f"tcp://127.0.0.1:{port}")

    def progress(self) -> Progress:
        progress = ray.get(self.controller.progress.remote(), timeout=DEADLINE_S)
        assert isinstance(progress, Progress)
        return progress

    def wait_until_ready(self) -> None:
        poll(lambda: self.progress().is_ready, "ready cluster")

    def view(self) -> ClusterView | None:
        """What a router learns now; None if the controller does not answer within a second."""
        self._router.send(encode(GetView()))
        if not self._router.poll(1000):
            return None
        message = decode(self._router.recv())
        assert isinstance(message, View)
        return message.view

    def replica_ids(self) -> set[str]:
        view = self.view()
        return {replica.replica_id for replica in view.replicas} if view else set()

    def order(self, replica: str, kind: str, text: str = "") -> None:
        (self.orders / f"{replica}.{kind}").write_text(text)

    def pid(self, replica_id: str, rank: int = 0) -> int:
        return int((self.orders / f"{rank}:{replica_id}.pid").read_text())

    def kill_controller(self) -> None:
        """Return when it has ended; Ray starts another."""
        pid = self.progress().process_id
        os.kill(pid, signal.SIGKILL)
        poll(lambda: not psutil.pid_exists(pid), "end of the controller")

    def segments(self) -> list[Path]:
        return list(Path("/dev/shm").glob(f"{self.spec.name}*"))

    def close(self) -> None:
        with contextlib.suppress(RayActorError):  # a test may have ended it already
            ray.get(self.controller.stop.remote(), timeout=DEADLINE_S)
        ray.kill(self.controller, no_restart=True)
        self._router.close()
        self._context.term()


@pytest.fixture(scope="package")
def local_ray() -> Iterator[None]:
    with tempfile.TemporaryDirectory(prefix="kvasir-", dir="/tmp") as directory:
        ray_here = LocalRay(uuid.uuid4().hex[:6], Path(directory))
        ray_here.start(num_cpus=4, num_gpus=0, show_logs=False)
        yield
        ray_here.stop()


@pytest.fixture
def start_cluster(local_ray: None, tmp_path: Path, free_port: int) -> Iterator[Callable[..., FakeCluster]]:
    """A function from pools and timings to a running cluster; one at a time, stopped after the test."""
    clusters: list[FakeCluster] = []

    def start(*pools: PoolConfig, timings: Timings | None = None, places_routers: bool = False) -> FakeCluster:
        timings = timings or Timings(poll_s=0.05)
        clusters.append(FakeCluster(tmp_path, *pools, port=free_port, timings=timings, places_routers=places_routers))
        return clusters[-1]

    yield start
    for cluster in clusters:
        cluster.close()


@pytest.fixture
def wait_for() -> Callable[[Callable[[], Any], str], Any]:
    return poll
