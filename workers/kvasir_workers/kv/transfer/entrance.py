"""A listener to which anybody may connect, also when this process may open no more files."""

import errno
import logging
from collections.abc import Callable
from socket import SO_ACCEPTCONN, SOL_SOCKET, socket

_log = logging.getLogger(__name__)

REST_S = 1.0
"""Whoever waits there stays waiting meanwhile; the system would say the same as often as it is asked."""

_NO_ROOM = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)


class Entrance:
    """Rests when nobody can be let in, and goes on by itself; says so once. clock counts seconds.

    watch: have `accept` called whenever somebody waits at the listener; unwatch: no more. `tick` is to be called now
    and then.
    """

    def __init__(
        self,
        listener: socket,
        watch: Callable[[], object],
        unwatch: Callable[[], object],
        clock: Callable[[], float],
    ) -> None:
        self._listener = listener
        self._watch = watch
        self._unwatch = unwatch
        self._clock = clock
        self._rests_until: float | None = None
        self._has_complained = False
        watch()

    @property
    def is_resting(self) -> bool:
        return self._rests_until is not None

    def accept(self) -> socket | None:
        """Whoever waits, on a socket that does not block; None if they have gone again or can't be let in now.

        Raises OSError once the listener is shut down.
        """
        try:
            connection, _ = self._listener.accept()
        except OSError as error:
            if not self._listener.getsockopt(SOL_SOCKET, SO_ACCEPTCONN):
                raise
            if error.errno in _NO_ROOM:
                self._rest(error)
            return None
        self._has_complained = False
        connection.setblocking(False)
        return connection

    def tick(self) -> None:
        """Look at the clock: whether to go on."""
        if self._rests_until is not None and self._clock() >= self._rests_until:
            self._rests_until = None
            self._watch()

    def _rest(self, error: OSError) -> None:
        self._unwatch()
        self._rests_until = self._clock() + REST_S
        if not self._has_complained:
            self._has_complained = True
            _log.warning(
                "nobody is let in at port %d until files are closed: %s; raise the limit (ulimit -n)",
                self._listener.getsockname()[1],
                error.strerror,
            )
