"""A process group of two, a writer and a decode side: NCCL between GPUs, gloo between CPUs.

    writer -> decode side     preface (generation, number of bytes), content, both as tensors of bytes

torch's operations wait, and a group whose operation failed can't be mended: each end has a thread for them, and whoever
sees a failure lets go of the group. The next hand-over meets in a new one. So does whoever has not used it for long:
the other side may be dead, which nobody is told.

A thread that is inside torch when the interpreter ends takes the process down with SIGABRT: the interpreter unwinds it
through functions that may not throw. So a process that ends lets its groups end what they do, which takes no longer
than the deadline of an operation.
"""

import atexit
import logging
from collections.abc import Callable
from dataclasses import dataclass
from queue import Empty, SimpleQueue
from threading import Thread

import torch
from torch import Tensor

from kvasir_protocol.errors import WireError
from kvasir_protocol.ids import Generation
from kvasir_protocol.messages import MAX_DEADLINE_S
from kvasir_workers.parallel.torch_groups import Group, join_store, open_group

_log = logging.getLogger(__name__)

DECODE_SIDE, WRITER = range(2)
"""Ranks."""

IDLE_S = (2 * MAX_DEADLINE_S, 6 * MAX_DEADLINE_S)
"""By rank, for a group that is not used: longer than any reservation waits for pages, and shorter at the decode side,
which names the place to meet, than at the writer, which must still be there."""

_TAG = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class PairMeeting:
    """Where two meet: the decode side's store, and a name that is used once."""

    host: str
    port: int
    name: str

    def to_text(self) -> str:
        return f"{self.host}|{self.port}|{self.name}"

    @classmethod
    def from_text(cls, text: str) -> "PairMeeting":
        """What `to_text` gave. Raises ValueError if it is something else."""
        host, port, name = text.split("|")
        if not 0 < int(port) < 2**16:
            raise ValueError(f"{port} is no port")
        return cls(host=host, port=int(port), name=name)


@dataclass(frozen=True, slots=True, kw_only=True)
class PairSeat:
    """One end's own side of it. host: its own address. deadline_s: for any one operation. device: of what travels.

    post: how results get from the group's thread to that of the owner. idle_s: for how long it stays though nobody uses
    it; None: as IDLE_S says.
    """

    rank: int
    host: str
    deadline_s: float
    device: torch.device
    post: Callable[[Callable[[], None]], None]
    idle_s: float | None = None

    @property
    def patience_s(self) -> float:
        """For the next use of the group."""
        return IDLE_S[self.rank] if self.idle_s is None else self.idle_s


class PairGroup:
    """One end, which begins to look for the other at once. on_broken is told why it is of no use any more, once."""

    def __init__(self, meeting: PairMeeting, seat: PairSeat, on_broken: Callable[[str], None]) -> None:
        self._meeting = meeting
        self._seat = seat
        self._on_broken = on_broken
        self._work: SimpleQueue[Callable[[Group], None] | None] = SimpleQueue()
        self._thread = Thread(target=self._run, name="page-group", daemon=True)
        atexit.register(self._end)
        self._thread.start()

    def send(self, generation: Generation, content: memoryview, on_sent: Callable[[], None]) -> None:
        """content is not to be changed until on_sent is called."""
        self._work.put(lambda group: self._send(group, generation, content, on_sent))

    def receive(self, generation: Generation, most_bytes: int, on_received: Callable[[memoryview], None]) -> None:
        """What the other side sent next, which must be of this generation."""
        self._work.put(lambda group: self._receive(group, generation, most_bytes, on_received))

    def stay(self) -> None:
        """It is going to be used."""
        self._work.put(lambda group: None)

    def close(self) -> None:
        """Leave it once what was asked for is done."""
        self._work.put(None)

    def _end(self) -> None:
        self.close()
        self._thread.join()

    # The thread

    def _run(self) -> None:
        try:
            self._work_on()
        finally:
            atexit.unregister(self._end)

    def _work_on(self) -> None:
        try:
            group = self._open()
            while (work := self._next_work()) is not None:
                work(group)
        except (RuntimeError, OSError, WireError) as error:
            reason = str(error).partition("\n")[0]
            _log.warning("a process group for pages is given up: %s", reason)
            self._seat.post(lambda: self._on_broken(reason))

    def _next_work(self) -> Callable[[Group], None] | None:
        patience_s = self._seat.patience_s
        try:
            return self._work.get(timeout=patience_s)
        except Empty:
            raise TimeoutError(f"nobody has used it for {patience_s:g} s") from None

    def _open(self) -> Group:
        meeting, seat = self._meeting, self._seat
        store = join_store(meeting.host, meeting.port, seat.deadline_s)
        return open_group(meeting.name, range(2), seat.rank, store, seat.host, seat.deadline_s, seat.device)

    def _send(self, group: Group, generation: Generation, content: memoryview, on_sent: Callable[[], None]) -> None:
        device = self._seat.device
        preface = torch.tensor([generation, len(content)], device=device)
        tensor = torch.frombuffer(content, dtype=torch.uint8).to(device)
        group.send([preface], DECODE_SIDE, _TAG).wait()
        group.send([tensor], DECODE_SIDE, _TAG).wait()
        self._seat.post(on_sent)

    def _receive(
        self, group: Group, generation: Generation, most_bytes: int, on_received: Callable[[memoryview], None]
    ) -> None:
        preface = self._fetch(group, torch.empty(2, dtype=torch.int64, device=self._seat.device))
        found, num_bytes = preface.tolist()
        if found != generation or not 0 < num_bytes <= most_bytes:
            raise WireError(
                f"{num_bytes} bytes of hand-over {found} came, expected at most {most_bytes} of {generation}"
            )
        content = self._fetch(group, torch.empty(num_bytes, dtype=torch.uint8, device=self._seat.device))
        self._seat.post(lambda: on_received(content.cpu().numpy().data))

    def _fetch(self, group: Group, tensor: Tensor) -> Tensor:
        group.recv([tensor], WRITER, _TAG).wait()
        return tensor
