"""The way from a command to a Ray cluster that runs already, and to the controllers in it."""

import contextlib
import logging
import os
import socket
from collections.abc import Iterator
from typing import Any

import ray
from ray.exceptions import AuthenticationError, GetTimeoutError, RayError, RayTaskError

from kvasir_cluster.creation import CONTROLLER_NAME
from kvasir_cluster.probe import describe_error
from kvasir_protocol.errors import KvasirError, ServiceUnavailable

KNOCK_S = 3.0
"""For the head to accept a connection. Ray itself would try for minutes."""

ANSWER_S = 20.0
"""For a controller to answer; one that was killed is back sooner."""


@contextlib.contextmanager
def connect(address: str, cluster_name: str) -> Iterator[None]:
    """Be a driver of a Ray cluster for the block. address: HOST:PORT of its head, or auto on one of its hosts.

    Raises ServiceUnavailable with what to do.
    """
    _knock(address)
    try:
        ray.init(
            address=address,
            namespace=f"kvasir-{cluster_name}",
            log_to_driver=False,
            logging_level=logging.ERROR,
        )
    except (AuthenticationError, ConnectionError, RuntimeError, ValueError) as error:
        reason = str(error).strip().partition("\n")[0].removesuffix(".")
        raise ServiceUnavailable(
            f"no Ray cluster at {address}: {reason}. Start one with `ray up FILE` or `ray start --head`, "
            "and run this on one of its hosts or with --address HEAD:6379; if it asks for a token, set "
            "RAY_AUTH_MODE=token as its hosts do"
        ) from error
    try:
        yield
    finally:
        ray.shutdown()


def _knock(address: str) -> None:
    """Find out in seconds whether anybody listens. Raises ServiceUnavailable."""
    address = os.environ.get("RAY_ADDRESS", address) if address == "auto" else address
    host, colon, port = address.rpartition(":")
    if not colon or "//" in address:
        return
    try:
        socket.create_connection((host, int(port)), KNOCK_S).close()
    except (OSError, ValueError) as error:
        raise ServiceUnavailable(f"no Ray head at {address}: {error}; is it up, and may this host reach it?") from error


def find_controller() -> Any | None:
    """The controller of the cluster whose name `connect` was given."""
    try:
        return ray.get_actor(CONTROLLER_NAME)
    except ValueError:
        return None


def answer(reference: Any, timeout_s: float = ANSWER_S) -> Any:
    """What a controller answers. Raises the KvasirError with which it refuses, ServiceUnavailable if it is silent."""
    try:
        return ray.get(reference, timeout=timeout_s)
    except GetTimeoutError as error:
        raise ServiceUnavailable(f"the controller gave no answer within {timeout_s:g} s") from error
    except RayError as error:
        if isinstance(error, RayTaskError) and isinstance(error.cause, KvasirError):
            raise error.cause from None
        raise ServiceUnavailable(f"the controller is lost: {describe_error(error)}") from error


def end_controller(controller: Any, timeout_s: float) -> None:
    """Let it end all that it made, then itself. Raises ServiceUnavailable if it can't."""
    answer(controller.stop.remote(), timeout_s)
    ray.kill(controller, no_restart=True)
