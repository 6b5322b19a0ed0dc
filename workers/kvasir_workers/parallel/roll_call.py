"""Who is there: at the start, and when an operation fails.

Neither gloo nor NCCL says whom it waited for. So whoever fails signs a list that all can read, waits a moment for the
others, who fail for the same reason, and names those who did not sign.
"""

import time
from collections.abc import Callable, Sequence

from kvasir_protocol.errors import RankLost
from kvasir_workers.parallel.mesh import RankPlace
from kvasir_workers.parallel.torch_groups import Store

GRACE_S = 1.0
"""For the others to sign after a connection broke: those who wait for whoever saw it first hear of it at once."""

GRACE_SHARE = 0.25
"""Of the deadline, instead, after it passed: the others may have begun to wait so much later."""

_LOOK_S = 0.02


class RollCall:
    """One rank's view of the list; the store belongs to one gang alone."""

    def __init__(
        self,
        store: Store,
        place: RankPlace,
        deadline_s: float,
        clock: Callable[[], float] = time.monotonic,
        pause: Callable[[float], None] = time.sleep,
    ) -> None:
        self._store = store
        self._place = place
        self._deadline_s = deadline_s
        self._clock = clock
        self._pause = pause

    def muster(self, what: str, patience_s: float, abandoned: Callable[[], str | None] = lambda: None) -> None:
        """Return when all ranks have come so far. Raises RankLost: who has not, or why they never will."""
        if missing := self._sign_and_wait(what, patience_s, abandoned):
            reason = abandoned() or f"{self._place} waited {patience_s:g} s for all ranks to have {what}"
            raise RankLost(f"{reason}; {_absent(missing)}", _numbers(missing))

    def exchange(
        self, what: str, word: str, patience_s: float, abandoned: Callable[[], str | None] = lambda: None
    ) -> list[str]:
        """What each rank says under this name, by rank. Raises RankLost as muster does."""
        self._store.set(f"{what}, said/{self._place.rank}", word)
        self.muster(what, patience_s, abandoned)
        ranks = range(self._place.shape.num_ranks)
        return [self._store.get(f"{what}, said/{rank}").decode() for rank in ranks]

    def explain(self, what: str, waited_s: float, peers: Sequence[int], detail: str) -> RankLost:
        """The error for an operation that failed after waited_s. peers: whom it needed, if not all of the gang."""
        is_late = waited_s >= self._deadline_s
        grace_s = max(GRACE_S, GRACE_SHARE * self._deadline_s) if is_late else GRACE_S
        try:
            missing = self._sign_and_wait("failed", grace_s)
        except (RuntimeError, ConnectionError) as error:
            missing = tuple(RankPlace(self._place.shape, rank) for rank in peers)
            detail = f"{detail}; the list of ranks is gone, too: {error}"
        first_line = detail.partition("\n")[0]
        text = f"{self._place} waited {waited_s:.1f} s in {what}; "
        if missing:
            return RankLost(text + _absent(missing) + ("" if is_late else f" ({first_line})"), _numbers(missing))
        return RankLost(f"{text}all ranks are there, but: {first_line}")

    def _sign_and_wait(
        self, name: str, patience_s: float, abandoned: Callable[[], str | None] = lambda: None
    ) -> tuple[RankPlace, ...]:
        """Those who have not signed by then, or when it is abandoned."""
        shape = self._place.shape
        missing = [RankPlace(shape, rank) for rank in range(shape.num_ranks) if rank != self._place.rank]
        if not missing or abandoned() is not None:  # the store of an abandoned gang may take minutes to say it is gone
            return tuple(missing)
        give_up_at = self._clock() + patience_s
        self._store.set(f"{name}/{self._place.rank}", "here")
        while True:
            missing = [place for place in missing if not self._store.check([f"{name}/{place.rank}"])]
            if not missing or self._clock() >= give_up_at or abandoned() is not None:
                return tuple(missing)
            self._pause(_LOOK_S)


def _absent(missing: Sequence[RankPlace]) -> str:
    return f"{', '.join(map(str, missing))} did not come"


def _numbers(places: Sequence[RankPlace]) -> tuple[int, ...]:
    return tuple(place.rank for place in places)
