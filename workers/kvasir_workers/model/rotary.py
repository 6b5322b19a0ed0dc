"""The angles of each position, computed once per model for every rotary kind."""

import math
from typing import assert_never

import torch
from torch import Tensor

from kvasir_workers.model.rotary_spec import DefaultRotary, LinearRotary, Llama3Rotary, RotarySpec, YarnRotary


class RotaryTable:
    """Cosine and sine of every position up to `max_positions`, float32 whatever the model's dtype."""

    def __init__(self, spec: RotarySpec, head_dim: int, max_positions: int, device: torch.device) -> None:
        # On the CPU whatever the device: the same angles everywhere, and arithmetic on the meta device, where shapes
        # are checked, would import all of torch's compiler (2 s).
        angles = torch.arange(max_positions).float().unsqueeze(1) * inverse_frequencies(spec, head_dim)
        scale = spec.attention_factor if isinstance(spec, YarnRotary) else 1.0
        # Side by side, so that a position is one row: [max_positions, D].
        self.rows = (torch.cat((angles.cos(), angles.sin()), dim=-1) * scale).to(device)

    def at(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        """Return the cosines and sines of `positions` [T]: each [T, D / 2] float32, for both numbers of a pair."""
        cos, sin = self.rows.index_select(0, positions).chunk(2, dim=-1)
        return cos, sin


def inverse_frequencies(spec: RotarySpec, head_dim: int) -> Tensor:
    """Return the angle by which each pair of a head turns per position: [D / 2] float32."""
    plain = 1.0 / (spec.theta ** (torch.arange(0, head_dim, 2).float() / head_dim))
    match spec:
        case DefaultRotary():
            return plain
        case LinearRotary():
            return plain / spec.factor
        case Llama3Rotary():
            return _llama3(spec, plain)
        case YarnRotary():
            return _yarn(spec, plain)
        case _:
            assert_never(spec)


def _llama3(spec: Llama3Rotary, plain: Tensor) -> Tensor:
    wavelength = 2 * math.pi / plain
    turns = spec.original_max_positions / wavelength
    smooth = (turns - spec.low_freq_factor) / (spec.high_freq_factor - spec.low_freq_factor)
    blended = (1 - smooth) * plain / spec.factor + smooth * plain
    is_long = wavelength > spec.original_max_positions / spec.low_freq_factor
    is_short = wavelength < spec.original_max_positions / spec.high_freq_factor
    return torch.where(is_long, plain / spec.factor, torch.where(is_short, plain, blended))


def _yarn(spec: YarnRotary, plain: Tensor) -> Tensor:
    num_pairs = len(plain)
    low, high = _yarn_bounds(spec, head_dim=2 * num_pairs)
    interpolated = ((torch.arange(num_pairs).float() - low) / (high - low)).clamp(0, 1)
    kept = 1 - interpolated
    return plain / spec.factor * (1 - kept) + plain * kept


def _yarn_bounds(spec: YarnRotary, head_dim: int) -> tuple[float, float]:
    """Return between which pairs YaRN passes from keeping the angle to dividing it by the factor."""

    def pair_of(num_turns: float) -> float:
        turns = spec.original_max_positions / (num_turns * 2 * math.pi)
        return head_dim * math.log(turns) / (2 * math.log(spec.theta))

    low, high = pair_of(spec.beta_fast), pair_of(spec.beta_slow)
    if spec.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, head_dim - 1)
    # As transformers does: equal bounds would divide by zero.
    return low, high + 0.001 if low == high else high
