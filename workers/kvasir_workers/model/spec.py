"""What sets one decoder apart from another, read from a Hugging Face config.json.

A family is one function of a few lines: how it departs from the plain Llama decoder.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from kvasir_protocol.errors import CheckpointError, ConfigError
from kvasir_workers.model.config_fields import ConfigFields
from kvasir_workers.model.rotary_spec import RotarySpec, read_rotary

_FLOAT_DTYPES = ("float32", "bfloat16", "float16")


@dataclass(frozen=True, slots=True, kw_only=True)
class DecoderSpec:
    """Everything that `Decoder` needs to be built.

    windows: per layer, how many tokens a token sees, itself included; None for all.
    dtype: the dtype the checkpoint was saved in, as torch names it.
    """

    architecture: str
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    norm_eps: float
    rotary: RotarySpec
    max_position_embeddings: int
    qkv_bias: bool
    output_bias: bool
    mlp_bias: bool
    qk_norm: bool
    windows: tuple[int | None, ...]
    tie_word_embeddings: bool
    dtype: str


def read_spec(config: Mapping[str, object], source: str = "config.json") -> DecoderSpec:
    """Return the spec that a config.json (of transformers 4 or 5) describes; `source` names it in errors.

    Raises CheckpointError for an unknown architecture, a missing or ill-typed key and what is not supported.
    """
    fields = ConfigFields(config, source)
    if (activation := fields.text("hidden_act", "silu")) != "silu":
        raise CheckpointError(f'{source}: activation "{activation}" is not supported; only "silu" is')
    architecture = _architecture(fields)
    traits = _FAMILIES[architecture](fields)
    num_heads, num_kv_heads, head_dim = _head_layout(fields)
    return DecoderSpec(
        architecture=architecture,
        vocab_size=fields.integer("vocab_size"),
        hidden_size=fields.integer("hidden_size"),
        intermediate_size=fields.integer("intermediate_size"),
        num_layers=fields.integer("num_hidden_layers"),
        num_heads=num_heads,
        num_kv_heads=num_kv_heads,
        head_dim=head_dim,
        norm_eps=fields.number("rms_norm_eps"),
        rotary=read_rotary(fields),
        max_position_embeddings=fields.integer("max_position_embeddings"),
        qkv_bias=traits.qkv_bias,
        output_bias=traits.output_bias,
        mlp_bias=traits.mlp_bias,
        qk_norm=traits.qk_norm,
        windows=traits.windows,
        tie_word_embeddings=fields.flag("tie_word_embeddings", default=False),
        dtype=_dtype(fields),
    )


def check_max_model_len(max_model_len: int | None, max_positions: int) -> None:
    """Raise ConfigError for a context that is longer than the model's."""
    if max_model_len is not None and max_model_len > max_positions:
        raise ConfigError(f"max_model_len {max_model_len} is beyond the model's {max_positions} positions; lower it")


@dataclass(frozen=True, slots=True, kw_only=True)
class _Traits:
    """How a family departs from the plain Llama decoder."""

    windows: tuple[int | None, ...]
    qkv_bias: bool = False
    output_bias: bool = False
    mlp_bias: bool = False
    qk_norm: bool = False


def _llama(fields: ConfigFields) -> _Traits:
    bias = fields.flag("attention_bias", default=False)
    mlp_bias = fields.flag("mlp_bias", default=False)
    return _Traits(windows=_uniform_windows(fields, None), qkv_bias=bias, output_bias=bias, mlp_bias=mlp_bias)


def _mistral(fields: ConfigFields) -> _Traits:
    if "sliding_window" not in fields.values:
        window: int | None = 4096  # transformers' default
    else:
        window = fields.integer("sliding_window") if fields.has("sliding_window") else None
    return _Traits(windows=_uniform_windows(fields, window))


def _qwen2(fields: ConfigFields) -> _Traits:
    return _Traits(windows=_qwen_windows(fields), qkv_bias=True)


def _qwen3(fields: ConfigFields) -> _Traits:
    bias = fields.flag("attention_bias", default=False)
    return _Traits(windows=_qwen_windows(fields), qkv_bias=bias, output_bias=bias, qk_norm=True)


_FAMILIES: Mapping[str, Callable[[ConfigFields], _Traits]] = {
    "LlamaForCausalLM": _llama,
    "MistralForCausalLM": _mistral,
    "Qwen2ForCausalLM": _qwen2,
    "Qwen3ForCausalLM": _qwen3,
}


def _uniform_windows(fields: ConfigFields, window: int | None) -> tuple[int | None, ...]:
    return (window,) * fields.integer("num_hidden_layers")


def _qwen_windows(fields: ConfigFields) -> tuple[int | None, ...]:
    """Return each layer's window: by `layer_types` where given, else on the layers from `max_window_layers` on."""
    num_layers = fields.integer("num_hidden_layers")
    if not fields.flag("use_sliding_window", default=False) or not fields.has("sliding_window"):
        return (None,) * num_layers
    window = fields.integer("sliding_window")
    if not fields.has("layer_types"):
        # 28 is transformers' default; zero is allowed here: every layer slides.
        first = fields.values.get("max_window_layers", 28)
        if isinstance(first, bool) or not isinstance(first, int) or first < 0:
            raise fields.wrong("max_window_layers", "a whole number")
        return tuple(window if layer >= first else None for layer in range(num_layers))
    windows = {"sliding_attention": window, "full_attention": None}
    layer_types = fields.texts("layer_types")
    if len(layer_types) != num_layers or not windows.keys() >= set(layer_types):
        raise fields.wrong("layer_types", f"{num_layers} of {' or '.join(windows)}")
    return tuple(windows[layer_type] for layer_type in layer_types)


def _architecture(fields: ConfigFields) -> str:
    architectures = fields.texts("architectures")
    known = [name for name in architectures if name in _FAMILIES]
    if not known:
        raise CheckpointError(
            f"{fields.source}: architecture {', '.join(architectures) or '(none)'} is not supported; "
            f"supported are {', '.join(_FAMILIES)}"
        )
    return known[0]


def _head_layout(fields: ConfigFields) -> tuple[int, int, int]:
    """Return num_heads, num_kv_heads and head_dim."""
    num_heads = fields.integer("num_attention_heads")
    num_kv_heads = fields.integer("num_key_value_heads", num_heads)
    head_dim = fields.integer("head_dim", fields.integer("hidden_size") // num_heads)
    if num_heads % num_kv_heads:
        raise fields.wrong("num_key_value_heads", f"a divisor of num_attention_heads ({num_heads})")
    if head_dim % 2:
        raise CheckpointError(f"{fields.source}: head size {head_dim} is odd, but rotary embedding needs an even one")
    return num_heads, num_kv_heads, head_dim


def _dtype(fields: ConfigFields) -> str:
    key = "dtype" if fields.has("dtype") else "torch_dtype"
    dtype = fields.text(key, "float32")
    if dtype not in _FLOAT_DTYPES:
        raise fields.wrong(key, f"one of {', '.join(_FLOAT_DTYPES)}")
    return dtype
