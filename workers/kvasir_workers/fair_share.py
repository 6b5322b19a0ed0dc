"""How much service each tenant has had: the virtual token counter of Sheng et al. (OSDI 2024)."""

from collections.abc import Collection, Mapping

INPUT_WEIGHT = 1.0
OUTPUT_WEIGHT = 2.0
"""What a token counts, as in the paper: an output token takes a pass of its own, input tokens share one."""


class TokenCounters:
    """Weighted tokens per tenant, divided by the tenant's own weight (1 unless weights says more).

    Whoever has least is served next, and at once if it runs nothing (Scheduler). While two tenants both have
    requests in line, their service differs by at most 2 * max(INPUT_WEIGHT * longest input, OUTPUT_WEIGHT * tokens
    that the pages hold), whatever either sends.
    """

    def __init__(self, weights: Mapping[str, float]) -> None:
        self._weights = weights
        self._counts: dict[str, float] = {}
        self._last_to_leave: str | None = None

    def __getitem__(self, tenant: str) -> float:
        return self._counts.get(tenant, 0.0)

    def enter(self, tenant: str, in_line: Collection[str]) -> None:
        """A tenant joins those in line: no credit for the time when it wanted nothing."""
        if in_line:
            level = min(self[other] for other in in_line)
        else:
            level = self[self._last_to_leave] if self._last_to_leave is not None else 0.0
        self._counts[tenant] = max(self[tenant], level)

    def leave(self, tenant: str) -> None:
        """The tenant has nothing in line any more; what it has running is still charged."""
        self._last_to_leave = tenant

    def charge(self, tenant: str, *, num_input: int = 0, num_output: int = 0) -> None:
        service = INPUT_WEIGHT * num_input + OUTPUT_WEIGHT * num_output
        self._counts[tenant] = self[tenant] + service / self._weights.get(tenant, 1.0)
