"""A Ray node without the processes that nobody here asks.

`ray.init` starts an API server, an autoscaler's monitor and a reader of logs whatever it is told: 140 MiB, and 4 s of
CPU time in the very seconds in which a server starts. There is no option for it, so the methods of Ray's own class that
start them are empty meanwhile. Where a release of Ray has other names for them, it starts as it likes.
"""

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

API_SERVER, AUTOSCALER, LOG_READER = "start_api_server", "start_monitor", "start_log_monitor"


@contextlib.contextmanager
def ray_without(starts: Sequence[str]) -> Iterator[None]:
    """Nodes that this process starts within the block leave these methods of Ray's node out."""
    from ray._private.node import Node

    kept = {name: getattr(Node, name) for name in starts if hasattr(Node, name)}
    for name in kept:
        setattr(Node, name, _start_nothing)
    try:
        yield
    finally:
        for name, method in kept.items():
            setattr(Node, name, method)


def _start_nothing(node: Any, *_: object, **__: object) -> None:
    """In place of a method of Ray's node."""
