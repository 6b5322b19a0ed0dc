"""Parts of pages leave one layout and arrive in another."""

import torch

from kvasir_kernels.dispatch import PagePart, gather_pages, scatter_pages


def test_pages_of_two_ranks_come_together_on_one() -> None:
    """Each rank has half of the heads; the other side has all."""
    whole = torch.randn(3, 2, 5, 4, 6, 2)
    ranks = [whole[..., :3, :].contiguous(), whole[..., 3:, :].contiguous()]
    page_ids, targets = torch.tensor([4, 1]), torch.tensor([0, 2])
    arrived = torch.zeros(3, 2, 3, 4, 6, 2)
    for rank, pages in enumerate(ranks):
        content = gather_pages(pages, page_ids, PagePart(0, 3, 0, 3))
        scatter_pages(content, arrived, targets, PagePart(0, 3, 3 * rank, 3))
    assert torch.equal(arrived[:, :, targets], whole[:, :, page_ids])
    assert arrived[:, :, 1].eq(0).all()


def test_a_page_is_whole_before_the_next_begins() -> None:
    pages = torch.randn(4, 2, 5, 3, 6, 2)
    content = gather_pages(pages, torch.tensor([2, 0]), PagePart(1, 2, 4, 2))
    assert content.shape == (2, 2, 2, 3, 2, 2)
    assert content.is_contiguous()
    assert torch.equal(content[1, 0, 1], pages[1, 1, 0, :, 4:])
