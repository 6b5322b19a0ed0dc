"""Pages that a running sequence is about to compute, so that others with the same prefix need not."""

from collections.abc import Container, Sequence

from kvasir_protocol.ids import PageHash, RequestId

MIN_AWAITED_PAGES = 4
"""A newcomer waits for others only if they compute at least so many of its next pages.

It waits for whole steps: what it saves must be worth more than the step that it may lose. Four pages of 16 tokens are
what a step of a small batch takes in anyway.
"""


class InFlightPages:
    """Who computes which page; the first to announce a page is its computer."""

    def __init__(self) -> None:
        self._computer: dict[PageHash, RequestId] = {}
        self._next: set[PageHash] = set()
        self._announced: dict[RequestId, set[PageHash]] = {}

    def __contains__(self, name: PageHash) -> bool:
        return name in self._computer

    def computers(self) -> set[RequestId]:
        return set(self._announced)

    def announce(self, request_id: RequestId, names: Sequence[PageHash], *, num_next: int = 0) -> None:
        """The sequence runs, and will compute the pages of these names unless it ends before.

        num_next: the first of them are there after its next step, since they are restored rather than computed.
        """
        mine = {name for name in names if self._computer.setdefault(name, request_id) == request_id}
        self._next |= mine.intersection(names[:num_next])
        if mine:
            self._announced.setdefault(request_id, set()).update(mine)

    def finish(self, request_id: RequestId, name: PageHash) -> None:
        """The sequence has computed the page."""
        mine = self._announced.get(request_id)
        if mine is None or name not in mine:
            return
        del self._computer[name]
        self._next.discard(name)
        mine.remove(name)
        if not mine:
            del self._announced[request_id]

    def forget(self, request_id: RequestId) -> None:
        """The sequence computes no more: whoever waits for it may take over."""
        for name in self._announced.pop(request_id, ()):
            del self._computer[name]
            self._next.discard(name)

    def last_worth_awaiting(self, names: Sequence[PageHash], min_pages: int) -> PageHash | None:
        """The last of the pages from the start of names on that others compute; None if they are under min_pages.

        For pages that are there after the next step it is always worth it.
        """
        count = _num_leading(names, self._computer)
        if count < min_pages:
            count = _num_leading(names, self._next)
        return names[count - 1] if count else None


def _num_leading(names: Sequence[PageHash], among: Container[PageHash]) -> int:
    """How many of the first names are among these."""
    count = 0
    while count < len(names) and names[count] in among:
        count += 1
    return count
