"""Steps of decodes as graphs replay them: their inputs, the cut of their attention, and the attention itself."""

import random as dice
from functools import partial

import torch
from torch import Tensor

from kvasir_kernels.cut_decodes import reference as reference_cut
from kvasir_kernels.paged_attention.reference import paged_attention as reference_attention
from kvasir_kernels.paged_attention.work import Cut
from kvasir_kernels.paged_cache import LayerCache, PaddedDecodes
from kvasir_kernels.unpack_decodes import reference as reference_unpacking
from kvasir_kernels.unpack_decodes.reference import HEADER, DecodeInputs, packed_size
from tests.kernel_cases.attention import ATTENTION_ERROR, fill
from tests.kernel_cases.checking import Case, assert_close, new_memory_is_nan, random

_PAGE_SIZE = 4


def pack(
    token_ids: list[int], said_rows: list[int], positions: list[int], tables: list[list[int]], capacity: int, width: int
) -> Tensor:
    """A message; what it does not say is a number that nobody may use."""
    packed = torch.full((packed_size(capacity, width),), 10**9, dtype=torch.int32)
    num_real, num_sent = len(token_ids), len(tables[0])
    packed[0], packed[1] = num_real, num_sent
    for index, column in enumerate((token_ids, said_rows, positions)):
        packed[HEADER + index * capacity :][:num_real] = torch.tensor(column)
    packed[HEADER + 3 * capacity :][: num_real * num_sent] = torch.tensor(tables).flatten()
    return packed


def _check_unpacking(num_real: int, num_rows: int, capacity: int, width: int, device: torch.device) -> None:
    """Equal to the reference where it says something; stale numbers stay nowhere else."""
    from kvasir_kernels.unpack_decodes.kernel import unpack_decodes

    draw = dice.Random(num_real)
    num_sent = max(1, width - 1)
    tables = [draw.choices(range(50), k=num_sent) for _ in range(num_real)]
    positions = [draw.randrange(_PAGE_SIZE * num_sent) for _ in range(num_real)]
    said_rows = [draw.choice([-1, draw.randrange(9)]) for _ in range(num_real)]
    packed = pack(draw.choices(range(1000), k=num_real), said_rows, positions, tables, capacity, width).to(device)
    said = (torch.arange(9) + 5000).to(device)
    filled = []
    for unpack in (unpack_decodes, reference_unpacking.unpack_decodes):
        inputs = DecodeInputs.empty(capacity, width, device)
        for tensor in (inputs.token_ids, inputs.positions, inputs.slots, inputs.context_lens, inputs.page_tables):
            tensor.fill_(77)
        unpack(packed, said, num_rows, _PAGE_SIZE, inputs)
        filled.append(inputs)
    actual, expected = filled
    for name in ("token_ids", "positions", "slots", "context_lens", "page_tables"):
        assert torch.equal(getattr(actual, name), getattr(expected, name)), name
    assert actual.slots[num_real:num_rows].tolist() == [-1] * (num_rows - num_real)


LENGTHS: dict[str, list[int]] = {
    "one": [1],
    "one long": [5000],
    "skewed": [900, 3, 40, 128, 1],
    "many short": [7] * 70,
    "padded": [300, 2000, 64, 65, 0, 0, 0],
    "padding": [0, 0],
    "even": [4096] * 8,
}


def _check_cut(lengths: list[int], window: int | None, num_pieces: int, device: torch.device) -> None:
    from kvasir_kernels.cut_decodes.kernel import cut_decodes

    cut = Cut(window, group_size=4, rows=16, num_pieces=num_pieces, keys=16)
    context_lens = torch.tensor(lengths, dtype=torch.int32, device=device)
    actual, expected = cut_decodes(cut, context_lens), reference_cut.cut_decodes(cut, context_lens)
    is_used = expected.pieces[:, 0] >= 0
    assert torch.equal(actual.pieces[is_used], expected.pieces[is_used])
    assert bool((actual.pieces[~is_used, 0] == -1).all())
    is_merged = expected.merges[:, 2] > 0
    assert torch.equal(actual.merges[is_merged], expected.merges[is_merged])
    assert bool((actual.merges[~is_merged, 2] == 0).all())
    assert actual.num_partials == expected.num_partials


def _check_attention(lengths: list[int], window: int | None, dtype: torch.dtype, device: torch.device) -> None:
    """Of the real rows equal to the reference; all other memory is NaN, and no other page is read."""
    from kvasir_kernels.paged_attention.kernel import paged_attention

    page_size, num_heads, num_kv_heads, head_dim = 16, 4, 2, 64
    needed = [-(-length // page_size) for length in lengths]
    order = torch.randperm(sum(needed) + 2, generator=torch.Generator().manual_seed(1))
    tables = torch.full((len(lengths), max(needed) + 1), 10**6)
    shape = (len(order), page_size, num_kv_heads, head_dim)
    cache = LayerCache(*(torch.full(shape, torch.nan, dtype=dtype, device=device) for _ in "kv"))
    for row, pages in enumerate(order.split([*needed, 2])[:-1]):
        tables[row, : len(pages)] = pages
    fill(cache, tables, [(1, length) for length in lengths], dtype)
    context_lens = torch.tensor(lengths, dtype=torch.int32, device=device)
    batch = PaddedDecodes(context_lens, tables.to(device))
    query = random(device, dtype, len(lengths), num_heads, head_dim)
    with new_memory_is_nan():
        outputs = [paged_attention(query, cache, batch, 0.2, window) for _ in range(2)]
    wide = LayerCache(cache.key.float(), cache.value.float())
    expected = reference_attention(query.float(), wide, batch, 0.2, window).to(dtype)
    is_real = context_lens > 0
    assert_close(outputs[0][is_real], expected[is_real], ATTENTION_ERROR[dtype])
    assert torch.equal(outputs[0][is_real], outputs[1][is_real]), "the second layer of a step takes the first one's cut"
    assert len(batch.work) == 1


def cases() -> dict[str, Case]:
    found: dict[str, Case] = {}
    for num_real, num_rows, capacity, width in [(1, 1, 1, 1), (3, 4, 8, 5), (8, 8, 8, 700), (5, 16, 40, 3)]:
        found[f"unpack_decodes {num_real} of {num_rows}, {width} pages"] = partial(
            _check_unpacking, num_real, num_rows, capacity, width
        )
    for name, lengths in LENGTHS.items():
        for window in (None, 50):
            for num_pieces in (1, 33):
                found[f"cut_decodes {name} window {window} {num_pieces} pieces"] = partial(
                    _check_cut, lengths, window, num_pieces
                )
    for window in (None, 50):
        found[f"padded attention window {window}"] = partial(
            _check_attention, [300, 70, 1, 33, 0, 0, 0], window, torch.float32
        )
    found["padded attention of halves"] = partial(_check_attention, [500, 3, 0], None, torch.float16)
    return found
