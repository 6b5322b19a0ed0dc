"""The decode side of page contents that come through process groups: one group for each writer."""

import secrets
from collections.abc import Callable
from dataclasses import replace
from functools import partial

from kvasir_protocol.messages import MAX_DEADLINE_S, PushPages, Quiet
from kvasir_workers.kv.transfer.importer import PageImporter
from kvasir_workers.kv.transfer.pair_group import DECODE_SIDE, PairGroup, PairMeeting, PairSeat
from kvasir_workers.kv.transfer.reservation import Peer
from kvasir_workers.parallel.torch_groups import Store, host_store


class GroupIntake:
    """All in the thread that owns the importer; post brings work there.

    The store where both sides meet is opened with the first group; it and the groups know no keys, as in every torch
    program.
    """

    def __init__(self, importer: PageImporter, host: str, post: Callable[[Callable[[], None]], None]) -> None:
        self._importer = importer
        device = importer.pages.device
        self._seat = PairSeat(rank=DECODE_SIDE, host=host, deadline_s=MAX_DEADLINE_S, device=device, post=post)
        self._store: tuple[Store, int] | None = None
        self._groups: dict[Peer, tuple[PairMeeting, PairGroup]] = {}

    def meet(self, writer: Peer, patience_s: float) -> str:
        """Where the writer finds its group, which is made if there is none. patience_s: for each operation."""
        if writer not in self._groups:
            if self._store is None:
                self._store = host_store(self._seat.host)
            meeting = PairMeeting(host=self._seat.host, port=self._store[1], name=secrets.token_hex(8))
            seat = replace(self._seat, deadline_s=patience_s)
            self._groups[writer] = meeting, PairGroup(meeting, seat, partial(self._lose, writer, meeting))
        meeting, group = self._groups[writer]
        group.stay()
        return meeting.to_text()

    def expect(self, writer: Peer, message: PushPages) -> bool:
        """The writer sends the contents of these pages now. Read also if nobody wants them: others come after them.

        False if the writer has no group.
        """
        if writer not in self._groups:
            return False
        most_bytes = self._importer.page_bytes * max(1, len(message.page_indices))
        _, group = self._groups[writer]
        group.receive(message.generation, most_bytes, partial(self._importer.take_received, writer, message))
        return True

    def drop(self, writer: Peer, message: Quiet) -> None:
        """Let go of the writer's group if it says that this one is broken: its other pushes may use it otherwise."""
        if writer in self._groups:
            meeting, group = self._groups[writer]
            if meeting.to_text() == message.broken_meeting:
                group.close()
                self._lose(writer, meeting, message.reason)

    def close(self) -> None:
        for _, group in self._groups.values():
            group.close()
        self._groups.clear()

    def _lose(self, writer: Peer, meeting: PairMeeting, reason: str) -> None:
        if writer in self._groups and self._groups[writer][0] == meeting:
            del self._groups[writer]
            self._importer.lose_group(writer, reason)
