"""How attention is cut into programs: everything once, and no program with much more than its share."""

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

from kvasir_kernels.paged_attention.work import Cut, cut_chunks, cut_decodes, cut_work

_contexts = st.lists(st.integers(1, 5000), min_size=0, max_size=20)
_windows = st.none() | st.integers(1, 3000)


def _cut(window: int | None = None, num_pieces: int = 33, keys: int = 32, rows: int = 128, group: int = 4) -> Cut:
    return Cut(window, group, rows, num_pieces, keys)


@given(contexts=_contexts, window=_windows, num_pieces=st.integers(1, 200))
def test_pieces_cover_the_visible_keys_of_every_decode_once(
    contexts: list[int], window: int | None, num_pieces: int
) -> None:
    pieces, _, _ = cut_decodes(_cut(window, num_pieces), contexts)
    for sequence, context in enumerate(contexts):
        covered = [key for row in pieces[pieces[:, 0] == sequence] for key in range(row[1], row[2])]
        assert covered == list(range(0 if window is None else max(0, context - window), context))


@given(contexts=_contexts, num_pieces=st.integers(1, 200))
def test_no_piece_is_much_longer_than_an_even_share(contexts: list[int], num_pieces: int) -> None:
    pieces, _, _ = cut_decodes(_cut(num_pieces=num_pieces), contexts)
    share = max(-(-sum(contexts) // num_pieces), 64)
    assert all(row[2] - row[1] < share + 32 for row in pieces)
    assert len(pieces) <= num_pieces + len(contexts)


@given(contexts=_contexts, window=_windows)
def test_every_partial_result_is_merged_once_and_in_its_place(contexts: list[int], window: int | None) -> None:
    pieces, merges, num_partials = cut_decodes(_cut(window), contexts)
    merged = {sequence: list(range(first, first + count)) for sequence, first, count in merges.tolist()}
    assert all(len(partials) > 1 for partials in merged.values())
    assert sorted(partial for partials in merged.values() for partial in partials) == list(range(num_partials))
    for sequence in range(len(contexts)):
        assert [row[3] for row in pieces.tolist() if row[0] == sequence] == merged.get(sequence, [-1])


def test_one_long_context_is_spread_while_short_ones_stay_whole() -> None:
    pieces, merges, _ = cut_decodes(_cut(num_pieces=16), [32768, *[512] * 15])
    assert merges.tolist() == [[0, 0, 13]]
    assert len(pieces) == 13 + 15


@given(
    lengths=st.lists(st.tuples(st.integers(1, 300), st.integers(0, 400)), min_size=1, max_size=6),
    group=st.sampled_from([1, 4, 7, 71]),
    window=_windows,
)
def test_tiles_cover_the_rows_of_every_chunk_once(
    lengths: list[tuple[int, int]], group: int, window: int | None
) -> None:
    query_lens = [new for new, _ in lengths]
    contexts = [new + cached for new, cached in lengths]
    tiles = cut_chunks(_cut(window, group=group), query_lens, contexts, num_decodes=0).tolist()
    for sequence, new in enumerate(query_lens):
        mine = [tile for tile in tiles if tile[0] == sequence]
        assert sorted(tile[1] for tile in mine) == list(range(0, new * group, 128))
        assert {tuple(tile[2:]) for tile in mine} == {(sum(query_lens[:sequence]), new, contexts[sequence])}


def test_decodes_have_no_tiles_and_the_heaviest_tile_comes_first() -> None:
    tiles = cut_chunks(_cut(group=1), [1, 10, 10], [9000, 20, 500], num_decodes=1)
    assert tiles[:, 0].tolist() == [2, 1]


def test_what_the_device_gets_starts_where_16_bytes_begin() -> None:
    work = cut_work(_cut(), [1, 5], [3000, 9], 1, torch.device("cpu"))
    whole = work.pieces.untyped_storage().data_ptr()
    assert [(table.data_ptr() - whole) % 16 for table in (work.pieces, work.merges, work.tiles)] == [0, 0, 0]
    assert work.tiles.tolist() == [[1, 0, 1, 5, 9]]
    assert np.array_equal(work.pieces[:, 3], range(work.num_partials))
