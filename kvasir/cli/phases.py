"""Shows what a start is doing and how long each part of it took."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TextIO

from rich.console import Console


class Phases:
    """One line for each phase when it is over; in a terminal, also what is going on now."""

    def __init__(self, output: TextIO) -> None:
        self._console = Console(file=output, highlight=False, soft_wrap=True)
        self._started_at = time.monotonic()

    @property
    def total_s(self) -> float:
        return time.monotonic() - self._started_at

    def say(self, text: str) -> None:
        """Print a line now; square brackets in it mean nothing special."""
        self._console.print(text, markup=False)

    def done(self, name: str, seconds: float) -> None:
        """A phase is over."""
        if self._console.is_terminal:
            self._console.print(f"  [green]✓[/green] {name:<22} [dim]{seconds:4.1f} s[/dim]")
        else:
            self.say(f"  {name:<24} {seconds:4.1f} s")

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Time the block. Nothing is printed when it raises: the error says more."""
        started_at = time.monotonic()
        with self.spinner(name):
            yield
        self.done(name, time.monotonic() - started_at)

    @contextmanager
    def spinner(self, text: str) -> Iterator[None]:
        """While the block runs, a terminal shows text with something that moves."""
        if not self._console.is_terminal:
            yield
            return
        with self._console.status(f"[bold]{text}[/bold]"):
            yield
