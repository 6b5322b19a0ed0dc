"""Tells when something is compiled or recorded though the engine said that it is ready: some request waits for it.

Triton calls its hooks for every kernel that a launch has to compile, or to read from its cache on disk.
"""

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

_log = logging.getLogger(__name__)

_OWN_MODULES = "kvasir_kernels."
"""A process may use Triton for other things, too."""


class CompileWatch:
    """Counts what is compiled and recorded. on_late: is told the name of each that comes when it should not any more.

    num_counted: all so far. late: the names of those that came too late.
    """

    def __init__(self, on_late: Callable[[str], None]) -> None:
        self.num_counted = 0
        self.late: list[str] = []
        self._on_late = on_late
        self._is_armed = False
        self._num_permits = 0
        self._is_watching = False
        self._other_hook: Callable[..., object] | None = None

    @contextmanager
    def permit(self) -> Iterator[None]:
        """While the block runs, a model is being made ready; others in this process may be so already."""
        self._num_permits += 1
        try:
            yield
        finally:
            self._num_permits -= 1

    def arm(self) -> None:
        """From now on nothing is to be compiled but with a permit."""
        self._is_armed = True

    def count(self, name: str) -> None:
        """Something was compiled, or is about to be recorded."""
        self.num_counted += 1
        if self._is_armed and not self._num_permits:
            self.late.append(name)
            self._on_late(name)

    def watch_triton(self) -> None:
        """See what Triton compiles, beside whoever watches it already. Who comes later may call us: so only once."""
        import triton

        if not self._is_watching:
            self._is_watching = True
            self._other_hook = triton.knobs.runtime.jit_post_compile_hook
            triton.knobs.runtime.jit_post_compile_hook = self._on_compiled

    def _on_compiled(self, **facts: Any) -> object:
        """Triton's hook; `repr` names the kernel with the types that it was compiled for."""
        if facts["fn"].module.startswith(_OWN_MODULES):
            self.count(facts["repr"])
        return self._other_hook(**facts) if self._other_hook is not None else None


def _log_first(name: str) -> None:
    if len(COMPILE_WATCH.late) == 1:
        _log.error("compiled after ready, while requests waited: %s; later ones are only counted", name)


COMPILE_WATCH = CompileWatch(_log_first)
"""Of the process, as Triton's hooks are."""
