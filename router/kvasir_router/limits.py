"""How much the router takes on at a time: beyond it a quick no instead of a queue without end."""

from collections.abc import Iterator
from contextlib import contextmanager

from kvasir_protocol.errors import InvalidRequest
from kvasir_router.http_errors import TooManyRequests


class InflightLimit:
    """Counts streams from the first byte of work to the last; n choices are n streams."""

    def __init__(self, max_streams: int) -> None:
        self._max_streams = max_streams
        self.num_streams = 0

    @contextmanager
    def admitted(self, num_streams: int) -> Iterator[None]:
        """Room for num_streams while the block runs. Raises TooManyRequests when there is none now,
        InvalidRequest when there never could be."""
        if num_streams > self._max_streams:
            raise InvalidRequest(
                f"prompts times n make {num_streams} streams; this server takes {self._max_streams} at a time", "n"
            )
        if self.num_streams + num_streams > self._max_streams:
            raise TooManyRequests(f"{self.num_streams} streams are in flight, of at most {self._max_streams}")
        self.num_streams += num_streams
        try:
            yield
        finally:
            self.num_streams -= num_streams
