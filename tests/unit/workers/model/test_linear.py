"""A decoder says the same whether its weights were packed or not, and holds them once."""

from pathlib import Path

import pytest
import torch

from kvasir_kernels.native.library import load_library
from kvasir_workers.model.decoder import Decoder
from kvasir_workers.model.loader import load_decoder
from tests.checkpoints import make_checkpoint
from tests.unit.workers.model.paged_prompts import PagedPrompts

CPU = torch.device("cpu")
STEPS = [{0: [5, 9, 200, 31], 1: [7]}, {0: [17], 1: [80, 81, 82]}, {0: [3], 1: [4]}]


@pytest.fixture(params=[False, True], ids=["untied", "tied"])
def checkpoint(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    return make_checkpoint(tmp_path, "Qwen3ForCausalLM", tie_word_embeddings=request.param)


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
