"""The dice: a counter-based generator, so that a token's noise is a pure function of (seed, choice, position)."""

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from kvasir_workers.sequence import Sequence as TokenSequence

Words = NDArray[np.uint64]

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)


def uniform_noise(sequences: Sequence[TokenSequence]) -> Tensor:
    """[R] float32 in [0, 1): one number per sequence, from its seed, choice and position alone."""
    streams = noise_streams(
        [sequence.request.seed for sequence in sequences], [sequence.request.choice_index for sequence in sequences]
    )
    return torch.from_numpy(noise_at(streams, np.array([s.num_generated for s in sequences], dtype=np.uint64)))


def noise_streams(seeds: Sequence[int], choices: Sequence[int]) -> Words:
    """What stays the same over all positions: [R]."""
    with np.errstate(over="ignore"):
        return _mix(_mix(np.array(seeds, dtype=np.uint64)) + np.array(choices, dtype=np.uint64))


def noise_at(streams: Words, positions: Words) -> NDArray[np.float32]:
    """[R] float32 in [0, 1)."""
    with np.errstate(over="ignore"):
        state = _mix(streams + positions)
    return (state >> np.uint64(40)).astype(np.float32) / np.float32(2**24)


def _mix(state: Words) -> Words:
    """The output function of SplitMix64 (Steele, Lea and Flood, 2014) after one increment."""
    state = state + _GOLDEN
    state = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    state = (state ^ (state >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return state ^ (state >> np.uint64(31))
