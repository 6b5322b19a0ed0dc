"""Graphs as a CPU has them, with a log."""

from kvasir_workers.runner.recorder import Rerun, Work


class LoggedRecorder(Rerun):
    """Knows what was recorded, and what is replayed when."""

    def __init__(self) -> None:
        self.recorded: list[str] = []
        self.replayed: list[str] = []

    def record(self, name: str, work: Work) -> Work:
        self.recorded.append(name)
        replay = super().record(name, work)

        def logged() -> None:
            self.replayed.append(name)
            replay()

        return logged
