"""Steps by how long they took: a replica counts them in buckets, a router reads percentiles from them."""

from bisect import bisect_left

_SHORTEST_S, _LONGEST_S, _GROWTH = 2e-4, 60.0, 1.25


def _bounds_s() -> tuple[float, ...]:
    bounds = [_SHORTEST_S]
    while bounds[-1] < _LONGEST_S:
        bounds.append(bounds[-1] * _GROWTH)
    return tuple(bounds)


BOUNDS_S = _bounds_s()
"""The longest step of each bucket but the last one, which has no bound."""

NUM_BUCKETS = len(BOUNDS_S) + 1


def bucket_of(step_s: float) -> int:
    """Which bucket a step of so many seconds is counted in."""
    return bisect_left(BOUNDS_S, step_s)
