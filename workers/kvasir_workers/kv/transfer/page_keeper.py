"""A rank's pages, read and written for a leader on another host, which speaks for all ranks of the replica."""

import logging
import socket
from contextlib import suppress
from threading import Thread

from torch import Tensor

from kvasir_protocol.errors import KvasirError, WireError
from kvasir_protocol.ids import PageIndex
from kvasir_protocol.messages import PageDoor, ReadPages, WritePages
from kvasir_protocol.wire import decode
from kvasir_workers.kv.transfer.page_content import pack_pages, page_bytes_of, unpack_pages
from kvasir_workers.kv.transfer.page_link import LinkKeys, SealedLink

_log = logging.getLogger(__name__)

_FIRST_WORD_S = 5.0
"""For whoever connects to show that it is the leader: a stranger must not keep the leader out for longer."""


class PageKeeper:
    """Listens from the constructor on; from `keep` on the leader reads and writes.

    Only pages that the leader has set aside are touched: it asks for none that a step could be writing, and writes
    none that a step could read. One leader comes, once; a link that broke ends the gang.
    """

    def __init__(self, host: str) -> None:
        """host: the rank's own address, at which the leader reaches it."""
        self._keys = LinkKeys.fresh()
        self._listener = socket.create_server((host, 0), family=socket.AF_INET6 if ":" in host else socket.AF_INET)
        self._link: SealedLink | None = None
        self._thread: Thread | None = None
        self.door = PageDoor(host=host, port=self._listener.getsockname()[1], keys=self._keys.to_bytes())

    def keep(self, pages: Tensor) -> None:
        """Serve the leader from a thread. pages: [L, 2, N, P, K, D] of this rank."""
        self._thread = Thread(target=self._serve, args=(pages,), name="page-keeper", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """End the thread and the link, if there are any. Idempotent."""
        with suppress(OSError):  # wakes whoever waits in accept; nobody does after the leader has come
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        if self._link is not None:
            self._link.hang_up()
        if self._thread is not None:
            self._thread.join()

    def _serve(self, pages: Tensor) -> None:
        try:
            self._link = self._meet_leader(pages)
            self._listener.close()
            self._link.set_patience(None)
            while True:
                _answer(self._link, pages)
        except OSError:
            pass  # closed, here or there
        except KvasirError as error:
            _log.warning("the link to the leader is given up: %s", error)
        finally:
            if self._link is not None:
                self._link.close()

    def _meet_leader(self, pages: Tensor) -> SealedLink:
        """The first connection that knows the keys; its first question is answered. Raises OSError once closed."""
        while True:
            connection, peer = self._listener.accept()
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            link = SealedLink(connection, sends=self._keys.answers, receives=self._keys.asks)
            link.set_patience(_FIRST_WORD_S)
            try:
                _answer(link, pages)
            except (OSError, WireError) as error:
                _log.warning("%s is not the leader: %s", peer[0], error)
                link.close()
                continue
            return link


def _answer(link: SealedLink, pages: Tensor) -> None:
    """Do what the next frame asks for. Raises WireError if that can't be, OSError if there will be none."""
    header, content = link.receive()
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
