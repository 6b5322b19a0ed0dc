"""Server-sent events out of whatever pieces the network makes of them."""


class EventReader:
    """Comments, event names and ids are skipped. Lines may end in LF or CRLF; one event's data may have many lines."""

    def __init__(self) -> None:
        self._rest = b""
        self._data: list[bytes] = []

    def feed(self, piece: bytes) -> list[bytes]:
        """The data of every event that is complete now."""
        *lines, self._rest = (self._rest + piece).split(b"\n")
        events: list[bytes] = []
        for line in lines:
            line = line.removesuffix(b"\r")
            if line.startswith(b"data:"):
                self._data.append(line[5:].removeprefix(b" "))
            elif not line and self._data:
                events.append(b"\n".join(self._data))
                self._data.clear()
        return events

    @property
    def has_rest(self) -> bool:
        """Whether an event has begun that is not complete."""
        return bool(self._rest or self._data)
