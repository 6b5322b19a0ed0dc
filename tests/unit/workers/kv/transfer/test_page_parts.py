"""Pages cut by layers and heads: what goes where, and that nothing is lost on the way."""

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from kvasir_protocol.errors import RankLost
from kvasir_protocol.ids import PageIndex
from kvasir_protocol.messages import PageCut, PageLayout
from kvasir_workers.kv.transfer.distant_pages import DistantPages
from kvasir_workers.kv.transfer.page_content import pack_pages
from kvasir_workers.kv.transfer.page_keeper import PageKeeper
from kvasir_workers.kv.transfer.page_parts import PartedPages, Transfer, transfers_between
from tests.unit.workers.kv.transfer.layouts import make_layout

NUM_PAGES = 5
SOURCE, TARGET = [PageIndex(i) for i in (4, 0, 1)], [PageIndex(i) for i in (2, 3, 0)]
SIZES = [(1, 1), (2, 1), (1, 2), (2, 2), (4, 1), (1, 3), (4, 2), (8, 3)]


def cuts_of(tp: int, pp: int, *, num_layers: int = 6, num_kv_heads: int = 4) -> list[PageCut]:
    """As even as can be; with fewer heads than ranks of a stage, some have copies."""
    cuts = []
    for stage in range(pp):
        first, end = num_layers * stage // pp, num_layers * (stage + 1) // pp
        for rank in range(tp):
            most = max(1, num_kv_heads // tp)
            heads = tuple(range(rank * num_kv_heads // tp, rank * num_kv_heads // tp + most))
            cuts.append(PageCut(first_layer=first, num_layers=end - first, kv_heads=heads))
    return cuts


def layout(num_layers: int = 6, num_kv_heads: int = 4) -> PageLayout:
    return make_layout(num_layers=num_layers, num_kv_heads=num_kv_heads)


def memory(cut: PageCut) -> torch.Tensor:
    return torch.full((cut.num_layers, 2, NUM_PAGES, 4, len(cut.kv_heads), 5), torch.nan)


def random_whole(of: PageLayout) -> torch.Tensor:
    shape = (of.num_layers, 2, NUM_PAGES, 4, of.num_kv_heads, 5)
    return torch.randn(shape, generator=torch.Generator().manual_seed(1))


def parted(of: PageLayout, cuts: list[PageCut], content: torch.Tensor | None = None) -> PartedPages:
    """With the content, if any, spread over all parts and copies."""
    memories = [memory(cut) for cut in cuts]
    if content is not None:
        for cut, pages in zip(cuts, memories, strict=True):
            layers = content[cut.layers.start : cut.layers.stop]
            pages.copy_(layers[:, :, :, :, list(cut.kv_heads)])
    return PartedPages(of, cuts, memories)


def assert_holds(parts: PartedPages, content: torch.Tensor) -> None:
    """The target's pages are the source's, in every copy; no other page was touched."""
    for cut, pages in zip(parts.cuts, parts.memories, strict=True):
        assert isinstance(pages, torch.Tensor)
        expected = content[cut.layers.start : cut.layers.stop][:, :, SOURCE][:, :, :, :, list(cut.kv_heads)]
        assert torch.equal(pages[:, :, TARGET], expected)
        others = [page for page in range(NUM_PAGES) if page not in TARGET]
        assert bool(pages[:, :, others].isnan().all())


@pytest.mark.parametrize("target", SIZES, ids=lambda size: f"to-{size[0]}x{size[1]}")
@pytest.mark.parametrize("source", SIZES, ids=lambda size: f"{size[0]}x{size[1]}")
def test_pages_copied_between_any_two_layouts_are_the_same(source: tuple[int, int], target: tuple[int, int]) -> None:
    content, theirs = random_whole(layout()), parted(layout(), cuts_of(*target))
    parted(layout(), cuts_of(*source), content).copy_to(theirs, SOURCE, TARGET)
    assert_holds(theirs, content)


@pytest.mark.parametrize("target", SIZES, ids=lambda size: f"to-{size[0]}x{size[1]}")
@pytest.mark.parametrize("source", SIZES, ids=lambda size: f"{size[0]}x{size[1]}")
def test_pages_packed_by_any_layout_and_unpacked_by_any_other_are_the_same(
    source: tuple[int, int], target: tuple[int, int]
) -> None:
    content, theirs = random_whole(layout()), parted(layout(), cuts_of(*target))
    packed = parted(layout(), cuts_of(*source), content).pack(SOURCE)
    assert packed == pack_pages(content, SOURCE)
    theirs.unpack(packed, TARGET)
    assert_holds(theirs, content)


@contextmanager
def followers_elsewhere(parts: PartedPages) -> Iterator[PartedPages]:
    """The same, with the pages of all ranks but the first within reach only by asking."""
    memories: list[torch.Tensor | DistantPages] = list(parts.memories[:1])
    keepers = []
    for rank, pages in enumerate(parts.memories[1:], 1):
        assert isinstance(pages, torch.Tensor)
        keepers.append(PageKeeper("127.0.0.1"))
        keepers[-1].keep(pages)
        shape = pages.shape
        memories.append(DistantPages.reach(rank, keepers[-1].door, tuple(shape), pages.dtype, 20.0))  # type: ignore[arg-type]
    yield PartedPages(parts.layout, parts.cuts, memories)
    for memory in memories[1:]:
        assert isinstance(memory, DistantPages)
        memory.close()
    for keeper in keepers:
        keeper.close()


@pytest.mark.parametrize("target", [(1, 1), (2, 1), (1, 3)], ids=lambda size: f"to-{size[0]}x{size[1]}")
@pytest.mark.parametrize("source", [(2, 1), (1, 2), (2, 2)], ids=lambda size: f"{size[0]}x{size[1]}")
def test_it_makes_no_difference_where_the_ranks_are(source: tuple[int, int], target: tuple[int, int]) -> None:
    content = random_whole(layout())
    with followers_elsewhere(parted(layout(), cuts_of(*source), content)) as ours:
        straight, theirs = parted(layout(), cuts_of(*target)), parted(layout(), cuts_of(*target))
        ours.copy_to(straight, SOURCE, TARGET)
        packed = ours.pack(SOURCE)
        assert packed == pack_pages(content, SOURCE)
        with followers_elsewhere(theirs) as reached:
            reached.unpack(packed, TARGET)
            assert reached.failure() is None
    assert_holds(straight, content)
    assert_holds(theirs, content)


def test_rank_that_is_gone_is_told_of() -> None:
    with followers_elsewhere(parted(layout(), cuts_of(2, 1), random_whole(layout()))) as ours:
        gone = ours.memories[1]
        assert isinstance(gone, DistantPages)
        gone.close()
        with pytest.raises(RankLost):
            ours.pack(SOURCE)
        assert "the pages of rank 1 can't be reached" in str(ours.failure())


sizes = st.tuples(st.sampled_from([1, 2, 4, 8]), st.integers(1, 4))


@given(source=sizes, target=sizes, num_layers=st.integers(4, 7), num_kv_heads=st.sampled_from([1, 2, 4, 8]))
def test_every_value_that_a_target_holds_is_written_exactly_once(
    source: tuple[int, int], target: tuple[int, int], num_layers: int, num_kv_heads: int
) -> None:
    sources = cuts_of(*source, num_layers=num_layers, num_kv_heads=num_kv_heads)
    targets = cuts_of(*target, num_layers=num_layers, num_kv_heads=num_kv_heads)
    written: dict[tuple[int, int, int], tuple[int, int]] = {}
    for transfer in transfers_between(sources, targets):
        read, wrote = sources[transfer.source], targets[transfer.target]
        for source_layer, layer in zip(transfer.source_layers, transfer.target_layers, strict=True):
            for source_place, place in zip(transfer.source_heads, transfer.target_heads, strict=True):
                where = (transfer.target, layer, place)
                assert where not in written
                written[where] = (read.layers[source_layer], read.kv_heads[source_place])
                assert written[where] == (wrote.layers[layer], wrote.kv_heads[place])
    assert len(written) == sum(cut.num_layers * len(cut.kv_heads) for cut in targets)


def test_ranks_that_have_copies_take_turns() -> None:
    sources = cuts_of(4, 1, num_kv_heads=2)  # heads 0 0 1 1
    targets = cuts_of(4, 1, num_kv_heads=2)
    assert [(each.source, each.target) for each in transfers_between(sources, targets)] == [
        (0, 0),
        (1, 1),
        (2, 2),
        (3, 3),
    ]


def test_head_that_a_rank_has_twice_is_written_twice() -> None:
    sources = cuts_of(1, 1, num_layers=2, num_kv_heads=2)
    targets = [PageCut(first_layer=0, num_layers=2, kv_heads=(1, 1))]
    both = range(2)
    assert transfers_between(sources, targets) == (
        Transfer(0, 0, both, both, source_heads=range(1, 2), target_heads=range(1)),
        Transfer(0, 0, both, both, source_heads=range(1, 2), target_heads=range(1, 2)),
    )


def test_heads_that_follow_each_other_go_in_one_block() -> None:
    (only,) = transfers_between(cuts_of(1, 1), cuts_of(1, 1))
    assert (only.source_layers, only.source_heads) == (range(6), range(4))


@pytest.mark.parametrize(
    ("missing", "reason"),
    [(PageCut(first_layer=0, num_layers=3, kv_heads=(0, 1)), "layers"), (cuts_of(2, 1)[0], "no rank has")],
    ids=["layers", "heads"],
)
def test_sources_that_lack_something_are_refused(missing: PageCut, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        transfers_between([missing], cuts_of(1, 1, num_kv_heads=2 if reason == "layers" else 4))
