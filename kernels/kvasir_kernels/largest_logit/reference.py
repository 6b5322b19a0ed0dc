"""The likeliest token of each row, in plain torch."""

from torch import Tensor


def largest_logit(logits: Tensor) -> tuple[Tensor, Tensor]:
    """Return the first of each row's largest logits, [R] int64, and what it is, [R]. logits: [R, V] float32.

    A row with a NaN has the first of these.
    """
    token_ids = logits.argmax(dim=-1)
    return token_ids, logits.gather(-1, token_ids[:, None])[:, 0]
