"""A decoder says the same whether its weights were packed or not, and holds them once. Float8 is multiplied as such."""

from pathlib import Path

import pytest
import torch

from kvasir_kernels.dispatch import Grain, quantize_float8
from kvasir_kernels.float8.reference import quantize_weight
from kvasir_kernels.native.library import load_library
from kvasir_workers.model.decoder import Decoder
from kvasir_workers.model.linear import Linear
from kvasir_workers.model.loader import load_decoder
from kvasir_workers.quantization.scheme import Float8Format
from tests.unit.workers.model.paged_prompts import PagedPrompts

CPU = torch.device("cpu")
STEPS = [{0: [5, 9, 200, 31], 1: [7]}, {0: [17], 1: [80, 81, 82]}, {0: [3], 1: [4]}]


def packed_decoder(path: Path) -> Decoder:
    decoder = load_decoder(path, torch.float32, CPU)
    decoder.pack_weights()
    return decoder


def test_packed_weights_give_the_same_logits(checkpoint: Path) -> None:
    plain, packed = (
        PagedPrompts(d, 2) for d in (load_decoder(checkpoint, torch.float32, CPU), packed_decoder(checkpoint))
    )
    for new_tokens in STEPS:
        for expected, ours in zip(plain.step(new_tokens).values(), packed.step(new_tokens).values(), strict=True):
            torch.testing.assert_close(ours, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.skipif(load_library() is None, reason="no C++ compiler here")
def test_packed_matrices_are_no_parameters_any_more(checkpoint: Path) -> None:
    decoder = packed_decoder(checkpoint)
    matrices = {name for name, parameter in decoder.named_parameters() if parameter.dim() == 2}
    assert matrices == (set() if decoder.spec.tie_word_embeddings else {"embedding.weight"})


def float8_linear_of(weight: torch.Tensor, form: Float8Format) -> Linear:
    linear = Linear(weight.shape[1], len(weight), bias=False)
    linear.become_float8(form)
    linear.quantize_from(weight)
    return linear


@pytest.mark.parametrize("grain", Grain)
def test_weights_that_are_quantized_part_by_part_are_those_of_the_whole(grain: Grain) -> None:
    weight = torch.randn(300, 2**15, generator=torch.Generator().manual_seed(0))
    linear, expected = float8_linear_of(weight, Float8Format(grain)), quantize_weight(weight, grain)
    assert torch.equal(linear.weight.float(), expected.values.float())
    assert linear.weight_scale is not None
    assert torch.equal(linear.weight_scale, expected.scale)


@pytest.mark.parametrize("form", [Float8Format(Grain.ROW), Float8Format(Grain.BLOCK), Float8Format(Grain.ROW, True)])
def test_what_others_quantized_is_taken_as_it_is(form: Float8Format) -> None:
    generator = torch.Generator().manual_seed(0)
    linear = float8_linear_of(torch.randn(200, 260, generator=generator), form)
    if linear.input_scale is not None:
        linear.input_scale.fill_(0.02)
    x = torch.randn(7, 260, generator=generator)
    assert linear.input_form is not None
    assert torch.equal(linear(quantize_float8(x, linear.input_form)), linear(x))


def test_float8_keeps_the_dtype_of_activations_and_is_not_packed() -> None:
    linear = Linear(64, 32, bias=True).to(torch.bfloat16)
    linear.become_float8(Float8Format(Grain.ROW))
    linear.pack()
    assert linear.dtype == torch.bfloat16
    assert linear.weight.dtype == torch.float8_e4m3fn
