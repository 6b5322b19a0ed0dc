"""The writer's side of page contents that go through a process group."""

from collections.abc import Callable
from functools import partial

import torch

from kvasir_protocol.ids import Generation
from kvasir_workers.kv.transfer.pair_group import WRITER, PairGroup, PairMeeting, PairSeat

MOST_FAILURES = 64
"""Broken groups that are remembered: a grant that names one may still be on its way."""


class GroupLine:
    """One push's share of a group; holds one frame at a time, as a PageLine does.

    meeting: where the group is. failure tells why it is of no use any more. on_idle is called when a frame is gone.
    """

    def __init__(
        self,
        group: PairGroup,
        meeting: str,
        generation: Generation,
        failure: Callable[[], str | None],
        on_idle: Callable[[], None],
    ) -> None:
        self.meeting = meeting
        self._group = group
        self._generation = generation
        self._failure = failure
        self._on_idle = on_idle
        self._has_moved = False
        self.is_idle = True

    def put(self, content: memoryview) -> None:
        """The next frame; whose contents it has, the other side has to be told besides."""
        self.is_idle = False
        self._group.send(self._generation, content, self._note_sent)

    def flush(self) -> bool:
        """Whether a frame has gone since the last time. Raises OSError if the group is broken."""
        if (failure := self._failure()) is not None:
            raise OSError(0, failure)
        has_moved, self._has_moved = self._has_moved, False
        return has_moved

    def close(self) -> None:
        """What is on its way goes on: the group is others', too."""

    def _note_sent(self) -> None:
        self.is_idle, self._has_moved = True, True
        self._on_idle()


class PairGroups:
    """The groups in which a pusher meets decode sides, by where. All in its thread; post brings work there.

    on_lost: one of them is broken.
    """

    def __init__(
        self,
        host: str,
        device: torch.device,
        post: Callable[[Callable[[], None]], None],
        on_lost: Callable[[], None],
    ) -> None:
        self._host = host
        self._device = device
        self._post = post
        self._on_lost = on_lost
        self._groups: dict[str, PairGroup] = {}
        self._failures: dict[str, str] = {}

    def line(self, meeting: str, generation: Generation, deadline_s: float, on_idle: Callable[[], None]) -> GroupLine:
        """A push's way to whoever waits at a meeting.

        Raises ValueError if that is no place to meet, ConnectionError if the group there is broken.
        """
        if (failure := self._failures.get(meeting)) is not None:
            raise ConnectionError(failure)
        if meeting not in self._groups:
            seat = PairSeat(rank=WRITER, host=self._host, deadline_s=deadline_s, device=self._device, post=self._post)
            self._groups[meeting] = PairGroup(PairMeeting.from_text(meeting), seat, partial(self.lose, meeting))
        self._groups[meeting].stay()
        return GroupLine(self._groups[meeting], meeting, generation, partial(self._failures.get, meeting), on_idle)

    def close(self) -> None:
        for group in self._groups.values():
            group.close()

    def lose(self, meeting: str, reason: str) -> None:
        """The group there is of no use any more."""
        self._groups.pop(meeting, None)
        self._failures[meeting] = reason
        if len(self._failures) > MOST_FAILURES:
            del self._failures[next(iter(self._failures))]
        self._on_lost()
