"""Whether a page is sooner restored than computed again, by what both were measured to take."""

from dataclasses import dataclass, field

_MEMORY = 0.9
"""Weight of what was measured before, at each new measurement: the last ten count for two thirds."""


TRIAL_EVERY = 64
"""One page in so many refusals is restored all the same: what was slow once would never be measured again."""


@dataclass(slots=True)
class Trials:
    """Counts refusals."""

    _num_refused: int = 0

    def is_due(self) -> bool:
        """Something was refused: whether a page of it is to be tried."""
        self._num_refused += 1
        return self._num_refused % TRIAL_EVERY == 0


@dataclass(slots=True)
class Rate:
    """Seconds per unit, exponentially smoothed; a measurement counts by its size."""

    _seconds: float = 0.0
    _units: float = 0.0

    def add(self, seconds: float, num_units: int) -> None:
        self._seconds = _MEMORY * self._seconds + seconds
        self._units = _MEMORY * self._units + num_units

    @property
    def seconds_per_unit(self) -> float | None:
        """None until something was measured."""
        return self._seconds / self._units if self._units else None


@dataclass(frozen=True, slots=True)
class Prices:
    """Measured seconds; None: not measured yet. token_s: to compute a prompt token; host_page_s: from host memory to
    the device; disk_page_s: from disk to host memory, verified."""

    token_s: float | None
    host_page_s: float | None
    disk_page_s: float | None


@dataclass(slots=True)
class PriceTag:
    """Gathers the measurements."""

    token: Rate = field(default_factory=Rate)
    host_page: Rate = field(default_factory=Rate)
    disk_page: Rate = field(default_factory=Rate)

    def prices(self) -> Prices:
        return Prices(self.token.seconds_per_unit, self.host_page.seconds_per_unit, self.disk_page.seconds_per_unit)


def compute_s(prices: Prices, num_pages: int, page_size: int) -> float:
    """Seconds to compute the pages' tokens. What was never measured costs nothing: then nothing is restored."""
    return (prices.token_s or 0.0) * num_pages * page_size


def is_host_cheaper(prices: Prices, page_size: int) -> bool:
    """Whether pages in host memory are sooner restored than computed; the same for any number of them."""
    return prices.host_page_s is not None and prices.host_page_s < compute_s(prices, 1, page_size)


def is_disk_cheaper(prices: Prices, num_pages: int, num_queued: int, page_size: int) -> bool:
    """Whether pages on disk, behind num_queued others that are read first, are sooner restored than computed."""
    if prices.disk_page_s is None or prices.host_page_s is None:
        return False
    restore_s = (num_queued + num_pages) * prices.disk_page_s + num_pages * prices.host_page_s
    return restore_s < compute_s(prices, num_pages, page_size)
