"""A decoder that takes a step in one call says what it says operation by operation, to the bit."""

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from kvasir_kernels.native.choice import without_native_kernels
from kvasir_kernels.native.library import load_library
from kvasir_workers.model.decoder import Decoder
from kvasir_workers.model.fusion import fuse, plain_form
from kvasir_workers.model.linear import Linear
from kvasir_workers.model.loader import load_decoder
from tests.checkpoints import make_checkpoint
from tests.unit.workers.model.paged_prompts import PagedPrompts

pytestmark = pytest.mark.skipif(load_library() is None, reason="no C++ compiler here")

CASES: dict[str, tuple[str, dict[str, object]]] = {
    "llama": ("LlamaForCausalLM", {}),
    "llama-tied-biases": ("LlamaForCausalLM", {"tie_word_embeddings": True, "attention_bias": True, "mlp_bias": True}),
    "mistral-window": ("MistralForCausalLM", {"sliding_window": 7}),
    "qwen2": ("Qwen2ForCausalLM", {}),
    "qwen3-windows": (
        "Qwen3ForCausalLM",
        {
            "tie_word_embeddings": True,
            "use_sliding_window": True,
            "sliding_window": 5,
            "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
        },
    ),
}
STEPS = [{0: [5, 9, 200, 31], 1: [7]}, {0: [17], 1: [80, 81, 82]}, {0: [3], 1: [4]}]


def packed_decoder(path: Path) -> Decoder:
    decoder = load_decoder(path, torch.float32, torch.device("cpu"))
    decoder.pack_weights()
    return decoder


def logits(decoder: Decoder) -> list[Tensor]:
    prompts = PagedPrompts(decoder, 2)
    return [rows for new_tokens in STEPS for rows in prompts.step(new_tokens).values()]


@pytest.mark.parametrize("name", CASES)
def test_one_call_gives_the_bits_of_many(name: str, tmp_path: Path) -> None:
    family, overrides = CASES[name]
    decoder = packed_decoder(make_checkpoint(tmp_path, family, **overrides))
    expected = logits(decoder)
    fuse(decoder)
    assert decoder.fused is not None
    for ours, wanted in zip(logits(decoder), expected, strict=True):
        assert torch.equal(ours, wanted)


class LoudLinear(Linear):
    """Does more than a product."""


def test_a_part_that_is_not_plain_keeps_the_decoder_as_it_is(tmp_path: Path) -> None:
    decoder = packed_decoder(make_checkpoint(tmp_path, "LlamaForCausalLM"))
    assert plain_form(decoder) is not None
    down = decoder.get_submodule("layers.1.feed_forward.down")
    down.__class__ = LoudLinear
    assert plain_form(decoder) is None
    fuse(decoder)
    assert decoder.fused is None


def test_a_part_that_came_later_keeps_the_decoder_as_it_is(tmp_path: Path) -> None:
    decoder = packed_decoder(make_checkpoint(tmp_path, "LlamaForCausalLM"))
    decoder.get_submodule("layers.0").add_module("adapter", nn.Identity())
    assert plain_form(decoder) is None


def test_a_part_that_others_listen_to_keeps_the_decoder_as_it_is(tmp_path: Path) -> None:
    """The ranks of a gang add up what each of them yields."""
    decoder = packed_decoder(make_checkpoint(tmp_path, "LlamaForCausalLM"))
    decoder.get_submodule("layers.2.attention.output").register_forward_hook(lambda part, inputs, output: output)
    assert plain_form(decoder) is None


def test_weights_of_torch_are_not_fused(tmp_path: Path) -> None:
    path = make_checkpoint(tmp_path, "LlamaForCausalLM")
    with without_native_kernels():
        decoder = packed_decoder(path)
        fuse(decoder)
    assert decoder.fused is None
