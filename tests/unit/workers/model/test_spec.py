"""Reading config.json of either generation, and what is said about those that can't be used."""

import pytest

from kvasir_protocol.errors import CheckpointError
from kvasir_workers.model.rotary_spec import DefaultRotary, LinearRotary, Llama3Rotary, YarnRotary
from kvasir_workers.model.spec import read_spec

Config = dict[str, object]

# As the hub holds it: meta-llama/Llama-3.2-1B.
LLAMA: Config = {
    "architectures": ["LlamaForCausalLM"],
    "attention_bias": False,
    "head_dim": 64,
    "hidden_act": "silu",
    "hidden_size": 2048,
    "intermediate_size": 8192,
    "max_position_embeddings": 131072,
    "mlp_bias": False,
    "num_attention_heads": 32,
    "num_hidden_layers": 16,
    "num_key_value_heads": 8,
    "rms_norm_eps": 1e-05,
    "rope_scaling": {
        "factor": 32.0,
        "high_freq_factor": 4.0,
        "low_freq_factor": 1.0,
        "original_max_position_embeddings": 8192,
        "rope_type": "llama3",
    },
    "rope_theta": 500000.0,
    "tie_word_embeddings": True,
    "torch_dtype": "bfloat16",
    "vocab_size": 128256,
}

# As the hub holds it: Qwen/Qwen2.5-0.5B-Instruct; it names no head size.
QWEN2: Config = {
    "architectures": ["Qwen2ForCausalLM"],
    "hidden_act": "silu",
    "hidden_size": 896,
    "intermediate_size": 4864,
    "max_position_embeddings": 32768,
    "max_window_layers": 21,
    "num_attention_heads": 14,
    "num_hidden_layers": 24,
    "num_key_value_heads": 2,
    "rms_norm_eps": 1e-06,
    "rope_theta": 1000000.0,
    "sliding_window": 32768,
    "tie_word_embeddings": True,
    "torch_dtype": "bfloat16",
    "use_sliding_window": False,
    "vocab_size": 151936,
}


def test_llama_of_the_hub_is_read() -> None:
    spec = read_spec(LLAMA)
    assert spec.rotary == Llama3Rotary(500000.0, 32.0, 1.0, 4.0, 8192)
    assert (spec.num_heads, spec.num_kv_heads, spec.head_dim) == (32, 8, 64)
    assert spec.windows == (None,) * 16
    assert spec.tie_word_embeddings
    assert not spec.qkv_bias
    assert spec.dtype == "bfloat16"


def test_qwen2_of_the_hub_is_read() -> None:
    spec = read_spec(QWEN2)
    assert spec.rotary == DefaultRotary(1000000.0)
    assert (spec.num_heads, spec.num_kv_heads, spec.head_dim) == (14, 2, 64)
    assert spec.windows == (None,) * 24
    assert spec.qkv_bias
    assert not spec.output_bias


def test_both_generations_of_keys_give_one_spec() -> None:
    newer = {key: value for key, value in LLAMA.items() if key not in ("rope_scaling", "rope_theta", "torch_dtype")}
    newer["dtype"] = "bfloat16"
    newer["rope_parameters"] = {**LLAMA["rope_scaling"], "rope_theta": 500000.0}  # type: ignore[dict-item]
    assert read_spec(newer) == read_spec(LLAMA)


def test_older_type_key_names_the_rotary_kind() -> None:
    rotary = read_spec(QWEN2 | {"rope_scaling": {"type": "linear", "factor": 2}}).rotary
    assert rotary == LinearRotary(1000000.0, 2.0)


def test_yarn_takes_its_lengths_from_the_config_where_it_names_none() -> None:
    scaling = {"type": "yarn", "original_max_position_embeddings": 8192}
    rotary = read_spec(QWEN2 | {"rope_scaling": scaling}).rotary
    assert isinstance(rotary, YarnRotary)
    assert (rotary.factor, rotary.original_max_positions) == (4.0, 8192)


def test_first_llamas_without_later_keys_are_read() -> None:
    later = ("head_dim", "num_key_value_heads", "rope_scaling", "rope_theta", "torch_dtype", "tie_word_embeddings")
    spec = read_spec({key: value for key, value in LLAMA.items() if key not in later})
    assert spec.rotary == DefaultRotary(10000.0)
    assert (spec.num_kv_heads, spec.head_dim) == (32, 64)
    assert (spec.tie_word_embeddings, spec.dtype) == (False, "float32")


@pytest.mark.parametrize(
    ("given", "expected"), [({}, 4096), ({"sliding_window": None}, None), ({"sliding_window": 9}, 9)]
)
def test_mistral_slides_on_every_layer(given: Config, expected: int | None) -> None:
    spec = read_spec(LLAMA | {"architectures": ["MistralForCausalLM"]} | given)
    assert spec.windows == (expected,) * 16


def test_qwen_slides_from_max_window_layers_on() -> None:
    spec = read_spec(QWEN2 | {"use_sliding_window": True, "sliding_window": 512})
    assert spec.windows == (None,) * 21 + (512,) * 3


def test_layer_types_outrank_max_window_layers() -> None:
    sizes = {"num_hidden_layers": 2, "use_sliding_window": True, "sliding_window": 8, "max_window_layers": 0}
    spec = read_spec(QWEN2 | sizes | {"layer_types": ["full_attention", "sliding_attention"]})
    assert spec.windows == (None, 8)


def test_qwen3_has_head_norms_and_its_bias_by_flag() -> None:
    qwen3 = QWEN2 | {"architectures": ["Qwen3ForCausalLM"], "head_dim": 128}
    spec = read_spec(qwen3)
    assert (spec.qk_norm, spec.head_dim, spec.qkv_bias, spec.output_bias) == (True, 128, False, False)
    assert read_spec(qwen3 | {"attention_bias": True}).output_bias


ROPE = LLAMA["rope_scaling"]
REFUSED: dict[str, tuple[Config, list[str]]] = {
    "architecture": (
        {"architectures": ["MambaForCausalLM"]},
        ["MambaForCausalLM", "LlamaForCausalLM", "MistralForCausalLM", "Qwen2ForCausalLM", "Qwen3ForCausalLM"],
    ),
    "no architecture": ({"architectures": None}, ["architectures"]),
    "activation": ({"hidden_act": "gelu"}, ["gelu", "silu"]),
    "missing key": ({"vocab_size": None}, ['lacks "vocab_size"']),
    "ill-typed key": ({"hidden_size": "2048"}, ['"hidden_size"', "'2048'"]),
    "a boolean for a number": ({"num_hidden_layers": True}, ['"num_hidden_layers"', "True"]),
    "zero heads": ({"num_attention_heads": 0}, ['"num_attention_heads"']),
    "not a number": ({"rms_norm_eps": float("nan")}, ['"rms_norm_eps"']),
    "uneven groups": ({"num_key_value_heads": 5}, ['"num_key_value_heads"', "32"]),
    "odd head": ({"head_dim": 33}, ["33"]),
    "dtype": ({"torch_dtype": "int8"}, ['"torch_dtype"', "int8"]),
    "tie flag": ({"tie_word_embeddings": "yes"}, ['"tie_word_embeddings"']),
    "rotary kind": ({"rope_scaling": {"type": "dynamic", "factor": 2.0}}, ["dynamic", "default, linear, llama3, yarn"]),
    "rotary factor": ({"rope_scaling": {"type": "linear"}}, ['"rope_scaling"', 'lacks "factor"']),
    "rotary section": ({"rope_scaling": 4}, ['"rope_scaling"']),
    "rotary theta": ({"rope_theta": 1.0}, ['"rope_theta"']),
    "rotary order": ({"rope_scaling": {**ROPE, "low_freq_factor": 4.0}}, ['"high_freq_factor"']),  # type: ignore[dict-item]
    "partial rotary": ({"partial_rotary_factor": 0.5}, ["partial_rotary_factor 0.5"]),
    "rotary per layer": ({"rope_scaling": {"full_attention": {"rope_type": "default"}}}, ["full_attention"]),
}


@pytest.mark.parametrize(("changes", "told"), REFUSED.values(), ids=REFUSED.keys())
def test_what_cannot_be_used_is_named_with_its_file(changes: Config, told: list[str]) -> None:
    with pytest.raises(CheckpointError) as caught:
        read_spec(LLAMA | changes, "/models/llama/config.json")
    message = str(caught.value)
    assert "\n" not in message
    for part in ["/models/llama/config.json", *told]:
        assert part in message


@pytest.mark.parametrize(
    "changes",
    [
        {"layer_types": ["full_attention"]},
        {"layer_types": ["chunked_attention"] * 24},
        {"max_window_layers": -1},
        {"sliding_window": 0},
    ],
)
def test_windows_that_make_no_sense_are_refused(changes: Config) -> None:
    with pytest.raises(CheckpointError, match=next(iter(changes))):
        read_spec(QWEN2 | {"use_sliding_window": True} | changes)
