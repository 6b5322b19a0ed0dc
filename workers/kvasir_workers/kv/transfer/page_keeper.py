"""A rank's pages, read and written for a leader on another host, which speaks for all ranks of the replica."""

import logging
import socket
import time
from contextlib import suppress
from threading import Lock, Thread

from torch import Tensor

from kvasir_protocol.errors import KvasirError, WireError
from kvasir_protocol.ids import PageIndex
from kvasir_protocol.messages import PageDoor, ReadPages, WritePages
from kvasir_protocol.wire import decode
from kvasir_workers.kv.transfer.page_content import pack_pages, page_bytes_of, unpack_pages
from kvasir_workers.kv.transfer.page_link import LinkKeys, SealedLink
from kvasir_workers.kv.transfer.waiting_room import WaitingRoom

_log = logging.getLogger(__name__)


class PageKeeper:
    """Listens from the constructor on; from `keep` on the leader reads and writes.

    Only pages that the leader has set aside are touched: it asks for none that a step could be writing, and writes
    none that a step could read. One leader comes, once; a link that broke ends the gang.
    """

    def __init__(self, host: str) -> None:
        """host: the rank's own address, at which the leader reaches it."""
        self._keys = LinkKeys.fresh()
        self._listener = socket.create_server((host, 0), family=socket.AF_INET6 if ":" in host else socket.AF_INET)
        self._lock = Lock()
        self._is_closed = False
        self._link: SealedLink | None = None
        self._thread: Thread | None = None
        self.door = PageDoor(host=host, port=self._listener.getsockname()[1], keys=self._keys.to_bytes())

    def keep(self, pages: Tensor) -> None:
        """Serve the leader from a thread. pages: [L, 2, N, P, K, D] of this rank."""
        self._thread = Thread(target=self._serve, args=(pages,), name="page-keeper", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """End the thread and the link, if there are any. Idempotent."""
        with self._lock:
            self._is_closed = True
            if self._link is not None:
                self._link.hang_up()
        with suppress(OSError):  # wakes whoever waits for the leader; nobody does after it has come
            self._listener.shutdown(socket.SHUT_RDWR)
        if self._thread is not None:
            self._thread.join()
        self._listener.close()

    def _serve(self, pages: Tensor) -> None:
        try:
            link, question = self._meet_leader()
            _answer(link, question, memoryview(b""), pages)
            while True:
                _answer(link, *link.receive(), pages)
        except OSError:
            pass  # closed, here or there
        except KvasirError as error:
            _log.warning("the link to the leader is given up: %s", error)
        finally:
            with self._lock:
                if self._link is not None:
                    self._link.close()

    def _meet_leader(self) -> tuple[SealedLink, bytes]:
        """Its link, and what it has asked; nobody else is let in any more. Raises OSError once closed."""
        room = WaitingRoom(self._listener, self._keys, time.monotonic)
        try:
            link, question = room.await_first()
        finally:
            room.close()
            self._listener.close()
        link.set_patience(None)
        with self._lock:
            self._link = link
            if self._is_closed:
                link.hang_up()
        return link, question


def _answer(link: SealedLink, header: bytes, content: memoryview, pages: Tensor) -> None:
    """Do what a frame asks for. Raises WireError if that can't be, OSError if nobody takes the answer."""
    match message := decode(header):
        case ReadPages(page_indices=indices):
            _check(indices, pages)
            link.send(b"", pack_pages(pages, indices))
        case WritePages(page_indices=indices):
            _check(indices, pages)
            if len(content) != len(indices) * page_bytes_of(pages):
                raise WireError(f"{len(content)} bytes for {len(indices)} pages of {page_bytes_of(pages)}")
            unpack_pages(content, pages, indices)
            link.send(b"", memoryview(b""))
        case _:
            raise WireError(f"a page keeper has no use for {type(message).__name__}")


def _check(indices: tuple[PageIndex, ...], pages: Tensor) -> None:
    if any(not 0 <= index < pages.shape[2] for index in indices):
        raise WireError(f"pages {indices} of {pages.shape[2]}")
