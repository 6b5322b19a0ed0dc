"""What a thread does while nobody asks anything of it."""

from collections.abc import Callable

IdleWork = Callable[[], bool]
"""Does a little, since whatever comes meanwhile waits for it. False if nothing is left to be done."""


def nothing_to_do() -> bool:
    """Idle work that is done."""
    return False
