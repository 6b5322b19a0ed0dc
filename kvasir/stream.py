"""One prompt's answer while it comes."""

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from types import TracebackType
from typing import Self

from kvasir.choice import Choice
from kvasir.outputs import Increment


class Stream(Iterator[Increment]):
    """Increments of all choices, in the order of the engine's steps. Closed or dropped, it ends the request."""

    def __init__(
        self, choices: Sequence[Choice], step: Callable[[], object], forget: Callable[[Sequence[Choice]], None]
    ) -> None:
        self._choices = choices
        self._step = step
        self._forget = forget
        self._ready: deque[Increment] = deque()
        self._is_closed = False

    def __next__(self) -> Increment:
        while not self._ready:
            self._collect()
            if not self._ready:
                if self._is_closed or all(choice.is_done for choice in self._choices):
                    self.close()
                    raise StopIteration
                self._step()
        return self._ready.popleft()

    def _collect(self) -> None:
        if not self._is_closed:
            increments = (choice.take_increment() for choice in self._choices)
            self._ready.extend(increment for increment in increments if increment is not None)

    def close(self) -> None:
        """End the request; its pages are free again. May be called twice."""
        if not self._is_closed:
            self._is_closed = True
            self._ready.clear()
            self._forget(self._choices)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def __del__(self) -> None:
        self.close()
