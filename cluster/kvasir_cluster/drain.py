"""A gang on its way out."""

from typing import Any

import ray
from ray.exceptions import RayError

from kvasir_cluster.gang import Gang
from kvasir_cluster.plan import ObservedGang
from kvasir_cluster.spec import Timings


class Drain:
    """Out of the routers' view a gang takes nothing new; what it has may end, then it is stopped in order.

    What still runs after drain_s is cut, and its routers carry it on elsewhere.
    """

    def __init__(self, gang: Gang, observed: ObservedGang, now_s: float, timings: Timings) -> None:
        self.gang = gang
        self.observed = observed
        self._began_at_s = now_s
        self._timings = timings
        self._question: Any = None
        self._farewells: list[Any] = []
        self._stopped_at_s = 0.0

    def is_over(self, now_s: float) -> bool:
        """True when it may be torn down. Never waits."""
        if self._farewells:
            answered, _ = ray.wait(self._farewells, num_returns=len(self._farewells), timeout=0)
            return len(answered) == len(self._farewells) or now_s - self._stopped_at_s >= self._timings.stop_s
        waited_s = now_s - self._began_at_s
        if waited_s >= self._timings.drain_s or (waited_s >= self._timings.unseen_s and self._is_idle()):
            self._farewells = self.gang.ask_to_stop()
            self._stopped_at_s = now_s
        return False

    def _is_idle(self) -> bool:
        """True if the last answer was that nothing runs; asks anew whenever one has come."""
        if self._question is None:
            self._question = self.gang.ask_num_streams()
        if not ray.wait([self._question], timeout=0)[0]:
            return False
        question, self._question = self._question, None
        try:
            return bool(ray.get(question) == 0)
        except RayError:
            # It died: nothing of it runs any more.
            return True
