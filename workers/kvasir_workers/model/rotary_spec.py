"""Which rotary embedding a checkpoint uses: one type per kind, read from either generation of config.json."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from kvasir_protocol.errors import CheckpointError
from kvasir_workers.model.config_fields import ConfigFields

# transformers' default for checkpoints, such as the first Llama's, that predate the key.
_DEFAULT_THETA = 10_000.0


@dataclass(frozen=True, slots=True)
class DefaultRotary:
    """Plain RoPE (RoFormer, Su et al., 2021)."""

    theta: float


@dataclass(frozen=True, slots=True)
class LinearRotary:
    """Position interpolation: all angles divided by `factor` (Chen et al., 2023)."""

    theta: float
    factor: float


@dataclass(frozen=True, slots=True)
class Llama3Rotary:
    """Llama 3.1's: long wavelengths divided by `factor`, short ones kept, a smooth passage between."""

    theta: float
    factor: float
    low_freq_factor: float
    high_freq_factor: float
    original_max_positions: int


@dataclass(frozen=True, slots=True)
class YarnRotary:
    """YaRN (Peng et al., 2023); `attention_factor` scales cos and sin."""

    theta: float
    factor: float
    attention_factor: float
    beta_fast: float
    beta_slow: float
    truncate: bool
    original_max_positions: int


RotarySpec = DefaultRotary | LinearRotary | Llama3Rotary | YarnRotary


def read_rotary(config: ConfigFields) -> RotarySpec:
    """Return the rotary kind of a config.json, from `rope_parameters` or from `rope_scaling` and `rope_theta`.

    Raises CheckpointError for a kind that is not supported, by name.
    """
    rope = config.section("rope_scaling" if config.values.get("rope_scaling") else "rope_parameters")
    if nested := [key for key, value in rope.values.items() if isinstance(value, Mapping)]:
        raise CheckpointError(f"{rope.source}: rotary parameters per layer type ({', '.join(nested)}) are unsupported")
    partial = rope.number("partial_rotary_factor", config.number("partial_rotary_factor", 1.0))
    if partial != 1.0:
        raise CheckpointError(f"{rope.source}: partial_rotary_factor {partial} is unsupported; only 1.0 is")
    kind = rope.text("rope_type", rope.text("type", "default"))
    if kind not in _READERS:
        supported = ", ".join(_READERS)
        raise CheckpointError(f'{rope.source}: rotary kind "{kind}" is unsupported; supported are {supported}')
    return _READERS[kind](config, rope)


def _theta(config: ConfigFields, rope: ConfigFields) -> float:
    theta = rope.number("rope_theta", config.number("rope_theta", _DEFAULT_THETA))
    if theta <= 1:
        raise (rope if rope.has("rope_theta") else config).wrong("rope_theta", "above 1")
    return theta


def _original_max_positions(config: ConfigFields, rope: ConfigFields) -> int:
    key = "original_max_position_embeddings"
    if config.has(key):
        return config.integer(key)
    return rope.integer(key, config.integer("max_position_embeddings"))


def _default(config: ConfigFields, rope: ConfigFields) -> RotarySpec:
    return DefaultRotary(_theta(config, rope))


def _linear(config: ConfigFields, rope: ConfigFields) -> RotarySpec:
    return LinearRotary(_theta(config, rope), rope.number("factor"))


def _llama3(config: ConfigFields, rope: ConfigFields) -> RotarySpec:
    low, high = rope.number("low_freq_factor"), rope.number("high_freq_factor")
    if low >= high:
        raise rope.wrong("high_freq_factor", f"above low_freq_factor ({low})")
    return Llama3Rotary(_theta(config, rope), rope.number("factor"), low, high, _original_max_positions(config, rope))


def _yarn(config: ConfigFields, rope: ConfigFields) -> RotarySpec:
    original = _original_max_positions(config, rope)
    factor = rope.number("factor", config.integer("max_position_embeddings") / original)
    return YarnRotary(
        theta=_theta(config, rope),
        factor=factor,
        attention_factor=rope.number("attention_factor", _yarn_attention_factor(rope, factor)),
        beta_fast=rope.number("beta_fast", 32.0),
        beta_slow=rope.number("beta_slow", 1.0),
        truncate=rope.flag("truncate", default=True),
        original_max_positions=original,
    )


def _yarn_attention_factor(rope: ConfigFields, factor: float) -> float:
    def grown(weight: float) -> float:
        return 0.1 * weight * math.log(factor) + 1.0 if factor > 1 else 1.0

    if rope.values.get("mscale") and rope.values.get("mscale_all_dim"):
        return grown(rope.number("mscale")) / grown(rope.number("mscale_all_dim"))
    return grown(1.0)


_READERS: Mapping[str, Callable[[ConfigFields, ConfigFields], RotarySpec]] = {
    "default": _default,
    "linear": _linear,
    "llama3": _llama3,
    "yarn": _yarn,
}
