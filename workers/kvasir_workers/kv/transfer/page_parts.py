"""Pages whose layers and heads lie with several ranks, and what goes where when two replicas are cut differently.

         prefill tp=2               decode pp=2
rank 0: heads 0, all layers    rank 0: layers 0 1, all heads
rank 1: heads 1, all layers    rank 1: layers 2 3, all heads      four transfers, each a block of layers x heads
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from kvasir_protocol.ids import PageIndex
from kvasir_protocol.messages import PageCut, PageLayout
from kvasir_workers.kv.transfer.distant_pages import DistantPages
from kvasir_workers.kv.transfer.page_content import (
    copy_pages,
    first_pages,
    layout_dtype,
    pack_pages,
    page_contents,
    page_places,
    unpack_pages,
)
from kvasir_workers.kv.transfer.pieces import Contents


@dataclass(frozen=True, slots=True)
class Transfer:
    """A block of each page: from a rank to a rank, layers and heads counted from 0 in what each of them holds."""

    source: int
    target: int
    source_layers: range
    target_layers: range
    source_heads: range
    target_heads: range


def transfers_between(sources: Sequence[PageCut], targets: Sequence[PageCut]) -> tuple[Transfer, ...]:
    """Blocks that fill all that the targets hold, each value once. Where sources have copies, they take turns.

    Raises ValueError if the sources lack something.
    """
    return tuple(transfer for index in range(len(targets)) for transfer in _into(index, targets[index], sources))


def _into(index: int, target: PageCut, sources: Sequence[PageCut]) -> Iterator[Transfer]:
    num_covered = 0
    for layers in dict.fromkeys(source.layers for source in sources):
        common = range(max(layers.start, target.layers.start), min(layers.stop, target.layers.stop))
        if not common:
            continue
        num_covered += len(common)
        stage = [number for number, source in enumerate(sources) if source.layers == layers]
        owners = [_owner(head, index, stage, sources) for head in target.kv_heads]
        for place, run in _runs(owners):
            source, first_place = owners[place]
            yield Transfer(
                source=source,
                target=index,
                source_layers=_counted_from(layers.start, common),
                target_layers=_counted_from(target.layers.start, common),
                source_heads=range(first_place, first_place + run),
                target_heads=range(place, place + run),
            )
    if num_covered != len(target.layers):
        raise ValueError(f"{num_covered} of layers {target.layers} are to be had, each once")


def _owner(head: int, turn: int, stage: Sequence[int], sources: Sequence[PageCut]) -> tuple[int, int]:
    """A source in the stage that has the head, and where on its axis."""
    having = [(number, sources[number].kv_heads.index(head)) for number in stage if head in sources[number].kv_heads]
    if not having:
        raise ValueError(f"no rank has key/value head {head}")
    return having[turn % len(having)]


def _runs(owners: Sequence[tuple[int, int]]) -> Iterator[tuple[int, int]]:
    """(first place, number of places) whose heads follow each other in one source, too."""
    start = 0
    for end in range(1, len(owners) + 1):
        if end < len(owners) and owners[end] == (owners[end - 1][0], owners[end - 1][1] + 1):
            continue
        yield start, end - start
        start = end


def _counted_from(start: int, layers: range) -> range:
    return range(layers.start - start, layers.stop - start)


class PartedPages:
    """The pages of a replica in the memories of its ranks, all within reach of this process: mapped, or by asking.

    What asks a rank on another host raises RankLost if that is gone.
    """

    def __init__(self, layout: PageLayout, cuts: Sequence[PageCut], memories: Sequence[Tensor | DistantPages]) -> None:
        """layout: of whole pages. memories: one for each cut, [its layers, 2, N, P, its heads, D]."""
        self.layout = layout
        self.cuts = tuple(cuts)
        self.memories = tuple(memories)

    @classmethod
    def whole(cls, layout: PageLayout, pages: Tensor) -> "PartedPages":
        """All in one memory."""
        return cls(layout, [whole_cut(layout)], [pages])

    @property
    def num_pages(self) -> int:
        return min(memory.shape[2] for memory in self.memories)

    @property
    def device(self) -> torch.device:
        """Where they are, as far as this process can tell: what others hold comes through its own memory."""
        first = self.memories[0]
        return first.device if isinstance(first, Tensor) else torch.device("cpu")

    def copy_to(self, target: "PartedPages", source_indices: Sequence[PageIndex], indices: Sequence[PageIndex]) -> None:
        """Copy pages into another replica's. Raises ValueError if its layers and heads are not ours."""
        sources = [_fetched(memory, source_indices) for memory in self.memories]
        targets = [_room(memory, indices) for memory in target.memories]
        for transfer in transfers_between(self.cuts, target.cuts):
            (read, read_at), (written, written_at) = sources[transfer.source], targets[transfer.target]
            source = _block(read, transfer.source_layers, transfer.source_heads)
            goal = _block(written, transfer.target_layers, transfer.target_heads)
            copy_pages(source, read_at, goal, written_at)
        for memory, (written, _) in zip(target.memories, targets, strict=True):
            if isinstance(memory, DistantPages):
                memory.write(written, indices)

    def failure(self) -> str | None:
        """Which rank's pages can't be reached any more, or None."""
        distant = (memory for memory in self.memories if isinstance(memory, DistantPages))
        return next((failure for memory in distant if (failure := memory.failure())), None)

    def pack(self, indices: Sequence[PageIndex], room: bytearray | None = None) -> memoryview:
        """The content of some pages, page after page, each as in one memory; in room as `pack_pages` has it."""
        if (whole := self._whole()) is not None:
            return pack_pages(whole, indices, room)
        packed, places = _empty_pages(self.layout, len(indices)), first_pages(len(indices))
        self.copy_to(PartedPages.whole(self.layout, packed), indices, places)
        return pack_pages(packed, places, room)

    def places(self, indices: Sequence[PageIndex]) -> list[memoryview]:
        """The memory of some pages, in the order of `pack`; empty if they don't lie in one memory within reach."""
        whole = self._whole()
        return [] if whole is None else page_places(whole, indices)

    def contents(self, indices: Sequence[PageIndex]) -> Contents | None:
        """What some pages hold, to be read or written, in the order of `pack`; None where there are no `places`."""
        whole = self._whole()
        return None if whole is None else page_contents(whole, indices)

    def unpack(self, content: bytes | memoryview, indices: Sequence[PageIndex]) -> None:
        """Write what pack made; the caller has checked the size."""
        if (whole := self._whole()) is not None:
            unpack_pages(content, whole, indices)
            return
        packed, places = _empty_pages(self.layout, len(indices)), first_pages(len(indices))
        unpack_pages(content, packed, places)
        PartedPages.whole(self.layout, packed).copy_to(self, places, indices)

    def _whole(self) -> Tensor | None:
        """The one memory, if it is only one and here."""
        first = self.memories[0]
        return first if len(self.memories) == 1 and isinstance(first, Tensor) else None


def whole_cut(layout: PageLayout) -> PageCut:
    return PageCut(first_layer=0, num_layers=layout.num_layers, kv_heads=tuple(range(layout.num_kv_heads)))


def _block(pages: Tensor, layers: range, heads: range) -> Tensor:
    return pages[layers.start : layers.stop, :, :, :, heads.start : heads.stop]


def _empty_pages(layout: PageLayout, num_pages: int) -> Tensor:
    shape = (layout.num_layers, 2, num_pages, layout.page_size, layout.num_kv_heads, layout.head_dim)
    return torch.empty(shape, dtype=layout_dtype(layout))


def _fetched(memory: Tensor | DistantPages, indices: Sequence[PageIndex]) -> tuple[Tensor, Sequence[PageIndex]]:
    """Memory of this process that has these pages, and where in it."""
    if isinstance(memory, DistantPages):
        return memory.read(indices), first_pages(len(indices))
    return memory, indices


def _room(memory: Tensor | DistantPages, indices: Sequence[PageIndex]) -> tuple[Tensor, Sequence[PageIndex]]:
    """Memory of this process where these pages are to be put first, and where in it."""
    if isinstance(memory, DistantPages):
        return memory.room(len(indices)), first_pages(len(indices))
    return memory, indices
