"""Parts of pages on a GPU: one launch for all layers, keys and values; one program moves one layer of one page."""

import triton
import triton.language as tl
from torch import Tensor

from kvasir_kernels.launch import power_of_two
from kvasir_kernels.move_pages.reference import PagePart, empty_content

_NUMBERS_OF_A_TURN = 2048


def gather_pages(pages: Tensor, page_ids: Tensor, part: PagePart) -> Tensor:
    """See reference.py."""
    content = empty_content(pages, len(page_ids), part)
    _launch(pages, content, page_ids, part, gathers=True)
    return content


def scatter_pages(content: Tensor, pages: Tensor, page_ids: Tensor, part: PagePart) -> None:
    """See reference.py."""
    _launch(pages, content.contiguous(), page_ids, part, gathers=False)


def _launch(pages: Tensor, content: Tensor, page_ids: Tensor, part: PagePart, *, gathers: bool) -> None:
    _, _, num_pages, page_size, num_kv_heads, head_dim = pages.shape
    _move[(len(page_ids), part.num_layers, 2)](
        pages, content, page_ids, num_pages, part.first_layer, part.first_head,
        GATHERS=gathers, NUM_LAYERS=part.num_layers, NUM_HEADS=part.num_heads, NUM_KV_HEADS=num_kv_heads,
        HEAD_DIM=head_dim, PAGE_SIZE=page_size,
        BLOCK=min(_NUMBERS_OF_A_TURN, power_of_two(page_size * part.num_heads * head_dim)), num_warps=4,
    )  # fmt: skip


@triton.jit(do_not_specialize=["num_pages", "first_layer", "first_head"])
def _move(
    pages: tl.tensor,
    content: tl.tensor,
    page_ids: tl.tensor,
    num_pages: tl.int64,
    first_layer: tl.int64,
    first_head: tl.int64,
    GATHERS: tl.constexpr,
    NUM_LAYERS: tl.constexpr,
    NUM_HEADS: tl.constexpr,
    NUM_KV_HEADS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    PAGE_SIZE: tl.constexpr,
    BLOCK: tl.constexpr,
) -> None:
    """Move the keys (0) or the values (1) of one layer of one page."""
    SIZE: tl.constexpr = PAGE_SIZE * NUM_HEADS * HEAD_DIM
    entry, layer, kind = tl.program_id(0).to(tl.int64), tl.program_id(1), tl.program_id(2)
    page = ((first_layer + layer) * 2 + kind) * num_pages + tl.load(page_ids + entry)
    inside = pages + (page * PAGE_SIZE * NUM_KV_HEADS + first_head) * HEAD_DIM
    outside = content + ((entry * NUM_LAYERS + layer) * 2 + kind) * SIZE
    for start in tl.range(0, SIZE, BLOCK):
        numbers = start + tl.arange(0, BLOCK)
        offsets, columns = numbers // (NUM_HEADS * HEAD_DIM), numbers % (NUM_HEADS * HEAD_DIM)
        places = inside + offsets * (NUM_KV_HEADS * HEAD_DIM) + columns
        if GATHERS:
            tl.store(outside + numbers, tl.load(places, mask=numbers < SIZE), mask=numbers < SIZE)
        else:
            tl.store(places, tl.load(outside + numbers, mask=numbers < SIZE), mask=numbers < SIZE)
