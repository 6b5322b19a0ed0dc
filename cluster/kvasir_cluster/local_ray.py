"""A Ray of our own on this host, closed to everybody else, which ends with this process and leaves nothing behind."""

import logging
import os
import secrets
import sys
from pathlib import Path

from kvasir_cluster.lean_ray import API_SERVER, AUTOSCALER, LOG_READER, ray_without

OBJECT_STORE_BYTES = 80 * 2**20
"""Close to the least that Ray accepts: neither tokens nor pages ever pass through the object store."""

VITAL = ("gcs_server", "raylet")
"""The processes without which nothing can be started any more."""

LOOPBACK = "127.0.0.1"


def settle_ray() -> None:
    """Settle that this process's Ray listens on the loopback interface only, asks for a token of its own, reports
    nothing home, and has workers of ordinary priority.

    Ray reads these variables while it is imported: call this before anything imports it.
    """
    assert "ray" not in sys.modules, "ray was imported before its environment was settled"
    os.environ.update(
        RAY_USAGE_STATS_ENABLED="0",
        RAY_AUTH_MODE="token",
        RAY_AUTH_TOKEN=secrets.token_hex(32),
        # Ray's switch for hosts that form no cluster: the only way to keep its servers on the loopback interface.
        RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER="0",
        # Ray would have its workers yield to whatever else this host runs (niceness 15).
        RAY_worker_niceness="0",
        # Ours never comes back. Long enough for an orderly end without it, before Ray ends whoever still misses it.
        RAY_gcs_rpc_server_reconnect_timeout_s="20",
    )


class LocalRay:
    """One Ray session on this host, after `settle_ray`."""

    def __init__(self, instance: str, directory: Path) -> None:
        """instance names its namespace. directory: its folder, there already, with a short path as sockets want it."""
        self._instance = instance
        self._directory = directory
        self._was_tried = False

    def start(self, num_cpus: int, num_gpus: int, *, show_logs: bool) -> None:
        """Start it and connect. Call from the thread that lives longest: Ray's processes die with that thread.

        Ray takes the handler of SIGTERM; put your own back afterwards.
        """
        import ray

        self._was_tried = True
        unwanted = [API_SERVER, AUTOSCALER] + ([] if show_logs else [LOG_READER])
        with ray_without(unwanted):
            ray.init(
                address="local",
                namespace=f"kvasir-{self._instance}",
                num_cpus=num_cpus,
                num_gpus=num_gpus,
                object_store_memory=OBJECT_STORE_BYTES,
                include_dashboard=False,
                log_to_driver=show_logs,
                logging_level=logging.WARNING if show_logs else logging.CRITICAL,
                _node_ip_address=LOOPBACK,
                _temp_dir=str(self._directory),
            )

    def find_death(self) -> str | None:
        """The vital process of it that has died, or None. Ray itself would end this process, but a minute later."""
        from ray._private.worker import _global_node

        if _global_node is None:
            return None
        dead = {kind for kind, _ in _global_node.dead_processes()}
        return next((kind for kind in VITAL if kind in dead), None)

    def stop(self) -> None:
        """End every process of it. Harmless when it never started, or not to the end."""
        if self._was_tried:
            import ray

            ray.shutdown()
