"""A small layout and page memories of it."""

import torch
from torch import Tensor

from kvasir_protocol.messages import LAYOUT_VERSION, PageLayout, PageSegment
from kvasir_workers.kv.transfer.page_parts import whole_cut


def make_layout(dtype: str = "float32", **changes: object) -> PageLayout:
    fields: dict[str, object] = {
        "version": LAYOUT_VERSION,
        "dtype": dtype,
        "page_size": 4,
        "num_layers": 3,
        "num_kv_heads": 2,
        "head_dim": 5,
        "model_fingerprint": "f",
    }
    return PageLayout(**{**fields, **changes})  # type: ignore[arg-type]


def whole_segment(name: str) -> tuple[PageSegment, ...]:
    """Pages of the layout, all in one piece of shared memory."""
    return (PageSegment(name=name, cut=whole_cut(make_layout())),)


def page_shape(num_pages: int) -> tuple[int, int, int, int, int, int]:
    return (3, 2, num_pages, 4, 2, 5)


def random_pages(num_pages: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> Tensor:
    return torch.randn(page_shape(num_pages), generator=torch.Generator().manual_seed(seed)).to(dtype)
