"""Which tokens a seeded choice may fall on when the last bits of its probabilities differ."""

from itertools import product

import numpy as np
import torch
from torch import Tensor

from kvasir_protocol.request import GenerationRequest
from kvasir_workers.runner.choice import draw, draw_filtered
from kvasir_workers.runner.noise import noise_at, noise_streams

MARGIN = 1e-5
"""Of probabilities, and of the bounds that they are held against: some hundred times float32's rounding."""

_NO_TOP_K = 2**31


def possible_choices(request: GenerationRequest, position: int, logprobs: Tensor) -> set[int]:
    """The tokens at a position of the answer, over all ways to round. logprobs: [V], the model's.

    A token on the edge of a filter, or noise on the edge between two tokens, may go to either side, and of two tokens
    that are equally likely either may come first: a matrix product over more rows sums in another order.
    """
    orders = [logprobs, _swapped(logprobs, 0), _swapped(logprobs, 1)]
    return set().union(*(_choices(request, position, order) for order in orders))


def _swapped(logprobs: Tensor, first: int) -> Tensor:
    """Of the tokens in their order, from the first on, every two that are equally likely have changed places."""
    values, ids = logprobs.sort(descending=True)
    changed = logprobs.clone()
    for one, other in zip(range(first, len(ids) - 1, 2), range(first + 1, len(ids), 2), strict=True):
        if values[one] - values[other] < MARGIN:
            changed[ids[one]], changed[ids[other]] = values[other], values[one]
    return changed


def _choices(request: GenerationRequest, position: int, logprobs: Tensor) -> set[int]:
    sampling = request.sampling
    noise = float(noise_at(noise_streams([request.seed], [request.choice_index]), np.array([position], np.uint64))[0])
    nudges = torch.tensor(list(product((-MARGIN, 0.0, MARGIN), repeat=3)))
    probabilities = torch.softmax(logprobs / sampling.temperature, dim=-1).expand(len(nudges), -1).contiguous()
    moved = (noise + nudges[:, 0]).clamp(0, 1)
    if sampling.top_k <= 0 and sampling.top_p >= 1 and sampling.min_p <= 0:
        return set(draw(probabilities, moved).tolist())
    top_k = torch.full((len(nudges),), sampling.top_k if sampling.top_k > 0 else _NO_TOP_K)
    top_p = sampling.top_p + nudges[:, 1] if sampling.top_p < 1 else torch.full((len(nudges),), torch.inf)
    min_p = sampling.min_p * (1 + nudges[:, 2])
    return set(draw_filtered(probabilities, moved, top_k, top_p, min_p).tolist())
