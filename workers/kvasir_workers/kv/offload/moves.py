"""What one step moves between the device's pages and the host tier, as plain numbers."""

from dataclasses import dataclass
from typing import NewType

from kvasir_protocol.ids import PageIndex

HostSlot = NewType("HostSlot", int)
"""Place of a page in the host tier's buffer."""


@dataclass(frozen=True, slots=True)
class PageSave:
    """The whole page is to be written into the slot."""

    page: PageIndex
    slot: HostSlot


@dataclass(frozen=True, slots=True)
class PageRestore:
    """The slot's content is to be written into the page."""

    slot: HostSlot
    page: PageIndex


@dataclass(frozen=True, slots=True)
class Moves:
    """In this order, before anything is copied or computed: a page may be saved and overwritten in one step, and a
    slot filled and read."""

    saves: tuple[PageSave, ...] = ()
    restores: tuple[PageRestore, ...] = ()
