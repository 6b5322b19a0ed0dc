"""Sampling in plain torch, in float64: what the kernel on a GPU is measured by.

A token's noise is a pure function of its stream and its position: SplitMix64 (Steele, Lea and Flood, 2014).
"""

from dataclasses import dataclass

import torch
from torch import Tensor

_GOLDEN = 0x9E3779B97F4A7C15 - 2**64
_FACTORS = (0xBF58476D1CE4E5B9 - 2**64, 0x94D049BB133111EB - 2**64)


@dataclass(frozen=True, slots=True)
class SamplingRules:
    """How R rows are sampled, one number of each tensor for a row.

    streams, positions: [R] int64, what the noise depends on; streams hold the bits of unsigned numbers.
    temperature: [R] float32; 0: the likeliest token. top_k: [R] int32, top_p, min_p: [R] float32; whoever wants no
    limit gives 2**31 - 1, infinity and 0.
    """

    streams: Tensor
    positions: Tensor
    temperature: Tensor
    top_k: Tensor
    top_p: Tensor
    min_p: Tensor


def sample_tokens(logits: Tensor, rules: SamplingRules) -> tuple[Tensor, Tensor]:
    """Return the tokens, [R] int64, and their logits, [R] float32: NaN where a row has any, -inf where none is allowed.

    logits: [R, V] float32. Of a row at its temperature min-p, top-k and top-p leave, in this order, a part; the token
    is the one at which the running sum of that part passes noise times its total. The sum runs from the likeliest token
    on, the first of equal ones first; where nothing is limited, from token 0 on.
    """
    token_ids = torch.stack([_sample(row, index, rules) for index, row in enumerate(logits)])
    chosen = logits.gather(-1, token_ids[:, None])[:, 0]
    return token_ids, torch.where(logits.isnan().any(-1), torch.nan, chosen)


def _sample(logits: Tensor, row: int, rules: SamplingRules) -> Tensor:
    temperature, top_k, top_p = float(rules.temperature[row]), int(rules.top_k[row]), float(rules.top_p[row])
    clean = logits.double().nan_to_num(nan=-torch.inf, posinf=torch.inf, neginf=-torch.inf)
    if temperature == 0 or clean.max() == -torch.inf:
        return clean.argmax()
    probabilities = torch.softmax(clean / temperature, -1)
    noise = noise_of(rules.streams[row], rules.positions[row])
    is_limited = top_k < logits.shape[-1] or top_p < 1 or rules.min_p[row] > 0
    if not is_limited:
        return _invert(probabilities, noise)
    values, order = probabilities.sort(descending=True, stable=True)
    rank = torch.arange(len(values), device=values.device)
    values = values.masked_fill((values < rules.min_p[row] * values[0]) | (rank >= top_k), 0)
    before = values.cumsum(-1) - values
    values = values.masked_fill((before >= top_p * values.sum()) & (rank > 0), 0)
    return order[_invert(values, noise)]


def _invert(weights: Tensor, noise: Tensor) -> Tensor:
    sums = weights.cumsum(-1)
    index = torch.searchsorted(sums, (noise * sums[-1])[None], right=True)[0]
    return index.clamp(max=int(weights.nonzero()[-1]))


def noise_of(streams: Tensor, positions: Tensor) -> Tensor:
    """In [0, 1), a multiple of 2**-24: float64 of the shape of the two, int64."""
    state = streams + positions + _GOLDEN
    for shift, factor in zip((30, 27), _FACTORS, strict=True):
        state = (state ^ _shifted(state, shift)) * factor
    return _shifted(state ^ _shifted(state, 31), 40).double() / 2**24


def _shifted(state: Tensor, bits: int) -> Tensor:
    """As of unsigned numbers."""
    shifted: Tensor = (state >> bits) & (2 ** (64 - bits) - 1)
    return shifted
