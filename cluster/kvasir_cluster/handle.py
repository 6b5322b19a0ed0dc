"""The controller seen from the process that created it."""

import time
from typing import Any

import ray
from ray.exceptions import ActorDiedError, RayError

from kvasir_cluster.probe import describe_error
from kvasir_cluster.report import Progress
from kvasir_protocol.errors import ServiceUnavailable

SILENCE_S = 60.0
"""A controller that was killed is back within seconds; one that is silent for this long has no Ray to come back in."""


class ClusterHandle:
    """Asks a controller how far it is, without waiting for it, and bears with it while Ray restarts it."""

    def __init__(self, controller: Any) -> None:
        self._controller = controller
        self._question = controller.progress.remote()
        self._heard_at_s = time.monotonic()

    def poll(self, timeout_s: float) -> Progress | None:
        """A fresh answer, or None if there is none within timeout_s.

        Raises ServiceUnavailable if the controller is gone for good.
        """
        if not ray.wait([self._question], timeout=timeout_s)[0]:
            self._judge_silence("no answer")
            return None
        try:
            progress: Progress = ray.get(self._question)
        except ActorDiedError as error:
            raise ServiceUnavailable("the controller died and Ray does not start it again") from error
        except RayError as error:
            self._question = self._controller.progress.remote()
            self._judge_silence(describe_error(error))
            return None
        self._heard_at_s = time.monotonic()
        self._question = self._controller.progress.remote()
        return progress

    def _judge_silence(self, why: str) -> None:
        if time.monotonic() - self._heard_at_s > SILENCE_S:
            raise ServiceUnavailable(f"the controller is lost, {why} for {SILENCE_S:g} s")

    def stop(self, timeout_s: float) -> None:
        """End all replicas in order, and the controller. What is not done in time is left to Ray's own end."""
        try:
            ray.get(self._controller.stop.remote(), timeout=timeout_s)
            ray.kill(self._controller, no_restart=True)
        except RayError:
            return
