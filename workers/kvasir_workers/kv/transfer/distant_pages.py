"""Pages of a rank on another host, as their leader reads and writes them."""

import socket
from collections.abc import Sequence
from threading import Lock

import torch
from torch import Tensor

from kvasir_protocol.errors import RankLost, WireError
from kvasir_protocol.ids import PageIndex
from kvasir_protocol.messages import PageDoor, ReadPages, WritePages
from kvasir_protocol.wire import encode
from kvasir_workers.kv.page_memory import PageShape
from kvasir_workers.kv.transfer.page_content import first_pages, pack_pages, unpack_pages
from kvasir_workers.kv.transfer.page_link import LinkKeys, SealedLink

_FIRST_PAGE = (PageIndex(0),)


class DistantPages:
    """Any thread may ask; one question is on its way at a time.

    An answer that does not come in time ends the link for good: what was to be written might still be, at any time,
    so the gang is to be built anew.
    """

    def __init__(self, rank: int, link: SealedLink, shape: PageShape, dtype: torch.dtype) -> None:
        self._rank = rank
        self._link = link
        self._lock = Lock()
        self._failure: str | None = None
        self.shape = shape
        self._dtype = dtype

    @classmethod
    def reach(
        cls, rank: int, door: PageDoor, shape: PageShape, dtype: torch.dtype, patience_s: float
    ) -> "DistantPages":
        """Connect, and read a page to see that they are as expected. shape: of the rank's pages.

        patience_s: for any one answer. Raises RankLost if it can't be reached.
        """
        try:
            keys = LinkKeys.from_bytes(door.keys)
            connection = socket.create_connection((door.host, door.port), patience_s)
        except (OSError, WireError) as error:
            raise RankLost(f"the pages of rank {rank} can't be reached: {error}", (rank,)) from error
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        link = SealedLink(connection, sends=keys.asks, receives=keys.answers)
        link.set_patience(patience_s)
        found = cls(rank, link, shape, dtype)
        try:
            found.read(_FIRST_PAGE)
        except BaseException:
            found.close()
            raise
        return found

    def read(self, indices: Sequence[PageIndex]) -> Tensor:
        """Some pages [L, 2, len(indices), P, K, D], in memory of this process. Raises RankLost."""
        pages = self.room(len(indices))
        content = self._ask(ReadPages(page_indices=tuple(indices)), memoryview(b""))
        if len(content) != pages.numel() * pages.itemsize:
            self._fail(f"{len(content)} bytes came for {len(indices)} pages")
        unpack_pages(content, pages, first_pages(len(indices)))
        return pages

    def write(self, pages: Tensor, indices: Sequence[PageIndex]) -> None:
        """Put pages [L, 2, len(indices), P, K, D] where indices say; returns when they are there. Raises RankLost."""
        content = pack_pages(pages, first_pages(len(indices)))
        self._ask(WritePages(page_indices=tuple(indices)), content)

    def room(self, num_pages: int) -> Tensor:
        """Memory of this process for so many pages, of undefined content."""
        num_layers, two, _, page_size, num_heads, head_dim = self.shape
        return torch.empty((num_layers, two, num_pages, page_size, num_heads, head_dim), dtype=self._dtype)

    def failure(self) -> str | None:
        """Why they can't be reached any more; None while they can."""
        return self._failure

    def close(self) -> None:
        self._link.hang_up()
        with self._lock:
            self._link.close()

    def _ask(self, message: ReadPages | WritePages, content: memoryview) -> memoryview:
        with self._lock:
            if self._failure is not None:
                raise RankLost(self._failure, (self._rank,))
            try:
                self._link.send(encode(message), content)
                _, answer = self._link.receive()
            except (OSError, WireError) as error:
                self._fail(str(error))
        return answer

    def _fail(self, reason: str) -> None:
        self._failure = f"the pages of rank {self._rank} can't be reached: {reason}"
        self._link.hang_up()
        raise RankLost(self._failure, (self._rank,))
