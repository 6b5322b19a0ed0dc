"""Takes away what killed processes left on their hosts."""

from collections.abc import Iterable
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from kvasir_cluster.gang import remove_segments


def sweep_segments(prefix: str, node_ids: Iterable[str]) -> list[Any]:
    """Ray references, each done when its host has no shared memory any more whose name starts with prefix."""
    task = ray.remote(remove_segments)
    return [
        task.options(
            num_cpus=0, max_retries=0, scheduling_strategy=NodeAffinitySchedulingStrategy(node_id, soft=False)
        ).remote(prefix)
        for node_id in node_ids
    ]
