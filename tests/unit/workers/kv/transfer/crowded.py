"""A listener of a process that may open no more files."""

import errno
from socket import socket


class CrowdedListener(socket):
    """Takes over another listener. is_full: nobody can be let in; num_asked: how often that was tried in vain."""

    is_full = True
    num_asked = 0

    def __init__(self, listener: socket) -> None:
        super().__init__(fileno=listener.detach())
        self.setblocking(False)

    def accept(self) -> tuple[socket, object]:
        if self.is_full:
            self.num_asked += 1
            raise OSError(errno.EMFILE, "Too many open files")
        return super().accept()
