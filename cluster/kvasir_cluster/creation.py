"""The controller as an actor, made once and found again by its name."""

from typing import Any

import ray
from ray.exceptions import ActorAlreadyExistsError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from kvasir_cluster.controller import Controller
from kvasir_cluster.spec import ControllerSpec
from kvasir_protocol.errors import ServiceUnavailable

CONTROLLER_NAME = "controller"

CALLS_AT_ONCE = 4
"""Threads for progress and stop, so that neither waits for the other."""


def create_controller(spec: ControllerSpec, *, detached: bool, node_id: str | None = None) -> Any:
    """A handle on the cluster's controller, created in the namespace of this Ray session.

    detached: it outlives this process, as does all that it creates; without, both end with the local Ray.
    node_id: the host that it runs on, where routers look for it also after it was restarted.
    Raises ServiceUnavailable if there is one already.
    """
    strategy = NodeAffinitySchedulingStrategy(node_id, soft=False) if node_id is not None else "DEFAULT"
    actor = ray.remote(Controller).options(
        name=CONTROLLER_NAME,
        lifetime="detached" if detached else None,
        num_cpus=0,
        max_restarts=-1,
        max_concurrency=CALLS_AT_ONCE,
        scheduling_strategy=strategy,
    )
    try:
        return actor.remote(spec)
    except ActorAlreadyExistsError:
        raise ServiceUnavailable(
            "somebody else has just made this cluster; look at it and say again what is wanted"
        ) from None
