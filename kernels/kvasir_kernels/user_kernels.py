"""Operations that users replace: entry points of the group `kvasir.kernels`.

Each is named after an operation of dispatch or sampling_dispatch.

    [project.entry-points."kvasir.kernels"]
    paged_attention = "my_package.attention:paged_attention"

The function gets what the operation gets, on any device, and returns what its reference would; or NotImplemented, for
what it doesn't take: then ours computes it.
"""

import difflib
import logging
from collections.abc import Callable, Iterable
from functools import cache, wraps
from importlib.metadata import EntryPoint, entry_points
from typing import ParamSpec, TypeVar

GROUP = "kvasir.kernels"

_log = logging.getLogger(__name__)

Parameters = ParamSpec("Parameters")
Result = TypeVar("Result")


def replaceable(operation: Callable[Parameters, Result]) -> Callable[Parameters, Result]:
    """The operation itself if nobody replaces it, which costs nothing then; else what asks the user's kernel first."""
    entry = _registered().get(operation.__name__)
    if entry is None:
        return operation
    load = cache(entry.load)  # at the first call: it may import what imports this
    _log.info("%s is computed by %s", entry.name, entry.value)

    @wraps(operation)
    def replaced(*args: Parameters.args, **kwargs: Parameters.kwargs) -> Result:
        result: Result = load()(*args, **kwargs)
        return operation(*args, **kwargs) if result is NotImplemented else result

    return replaced


@cache
def _registered() -> dict[str, EntryPoint]:
    """By operation; the first by name of those that replace the same one."""
    found: dict[str, EntryPoint] = {}
    for entry in sorted(entry_points(group=GROUP), key=lambda entry: entry.value):
        if entry.name in found:
            _log.warning("%s and %s both replace %s: the first does", found[entry.name].value, entry.value, entry.name)
        else:
            found[entry.name] = entry
    return found


def is_any_replaced() -> bool:
    """Whether operations must be called one by one, so that the user's kernels get their turn."""
    return bool(_registered())


def warn_of_unknown(operations: Iterable[str]) -> None:
    """Say which entry points replace nothing."""
    known = tuple(operations)
    for name in _registered().keys() - set(known):
        nearest = difflib.get_close_matches(name, known, n=1)
        hint = f"; did you mean {nearest[0]}?" if nearest else f"; there are {', '.join(sorted(known))}"
        _log.warning('entry point "%s" of group %s names no operation%s', name, GROUP, hint)
