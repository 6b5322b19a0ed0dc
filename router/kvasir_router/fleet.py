"""All replicas that this router knows: opens and closes links as the view of the cluster changes."""

import asyncio
from collections.abc import Callable, Collection

from kvasir_protocol.ids import ReplicaId
from kvasir_protocol.view import ClusterView, ReplicaAddress
from kvasir_router.links import ReplicaLink
from kvasir_router.routing.load import InflightCounter, ReplicaLoad, replica_load

LinkOpener = Callable[[ReplicaAddress, Callable[[], None]], ReplicaLink]
"""Opens the link to an address; the second argument is to be called whenever the link goes up or down."""

STARTING = ClusterView(version=-1, replicas=(), phase="starting")


class Fleet:
    """The links of the current view, and those of the last that still carry streams.

    A replica that left the view takes no new streams; its link is closed when the last one has ended.
    """

    def __init__(self, open_link: LinkOpener) -> None:
        self.view = STARTING
        self.inflight = InflightCounter()
        self._open_link = open_link
        self._links: dict[ReplicaId, ReplicaLink] = {}
        self._leaving: set[ReplicaLink] = set()
        self._closing: set[asyncio.Task[None]] = set()
        self._changed = asyncio.Event()
        self._has_been_live = False

    @property
    def is_beginning(self) -> bool:
        """No replica was reached yet, and none is known to be still loading: one may answer at any moment."""
        return not self._has_been_live and self.view.phase in (STARTING.phase, "ready")

    @property
    def links(self) -> Collection[ReplicaLink]:
        """One for every replica of the view, up or not."""
        return self._links.values()

    def link(self, replica_id: ReplicaId) -> ReplicaLink:
        return self._links[replica_id]

    def live(self) -> list[ReplicaLink]:
        return [link for link in self._links.values() if link.is_up]

    def loads(self) -> list[ReplicaLoad]:
        """The candidates for a new stream."""
        return [replica_load(link.address, self.inflight, link.stats, link.meter.rates()) for link in self.live()]

    def context_tokens(self) -> int | None:
        """Prompt and answer that any live replica can hold, or None while none is up."""
        limits = [link.info.max_sequence_tokens for link in self.live() if link.info is not None]
        return min(limits, default=None)

    def apply(self, view: ClusterView) -> None:
        """Open links to newcomers, let go of those that left or moved; a new role changes no link and no stream."""
        self.view = view
        wanted = {address.replica_id: address for address in view.replicas}
        for replica_id, link in list(self._links.items()):
            address = wanted.get(replica_id)
            if address is not None and address.endpoint == link.address.endpoint:
                link.address = address
            else:
                del self._links[replica_id]
                self._leaving.add(link)
        for replica_id, address in wanted.items():
            if replica_id not in self._links:
                self._links[replica_id] = self._open_link(address, self._signal)
        self._signal()
        self.close_idle()

    def close_idle(self) -> None:
        """Close the links of replicas that left and carry no stream any more; called when a stream ends."""
        for link in [link for link in self._leaving if not link.num_streams]:
            self._leaving.remove(link)
            task = asyncio.create_task(link.close())
            self._closing.add(task)
            task.add_done_callback(self._closing.discard)

    async def wait_for_change(self) -> None:
        """Return when a replica has come, gone, risen or fallen since this was called."""
        await self._changed.wait()

    async def close(self) -> None:
        links = [*self._links.values(), *self._leaving]
        await asyncio.gather(*(link.close() for link in links), *self._closing)

    def _signal(self) -> None:
        """Wake everybody who waits now; later waiters wait for the next change."""
        self._has_been_live = self._has_been_live or bool(self.live())
        self._changed.set()
        self._changed = asyncio.Event()
