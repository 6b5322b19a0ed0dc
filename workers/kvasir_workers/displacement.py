"""Who has to wait so that a tenant that runs nothing can. Values in, those in their order out."""

from bisect import bisect_left
from collections import Counter
from collections.abc import Callable
from collections.abc import Sequence as Many

from kvasir_workers.sequence import Sequence


def displaceable(running: Many[Sequence]) -> list[Sequence]:
    """Those that may have to wait, the first to do so first; but nobody who is the only one of a tenant.

    running: the tenant that was served most comes last.
    """
    left = Counter(sequence.request.tenant for sequence in running)
    chosen = []
    for sequence in reversed(running):
        if left[sequence.request.tenant] > 1:
            left[sequence.request.tenant] -= 1
            chosen.append(sequence)
    return chosen


def fewest(most: int, is_enough: Callable[[int], bool]) -> int | None:
    """The least number up to most that is enough, where more is never worse; None if most is not enough."""
    number = bisect_left(range(most + 1), True, key=is_enough)
    return number if number <= most else None
