"""What quantization costs the demo model in what it knows: perplexity of text that it was made for, and its logits."""

import pytest
import torch
from tokenizers import Tokenizer
from torch import Tensor
from torch.nn import functional as F

from kvasir.demo import demo_model_path
from kvasir_workers.model.loader import load_decoder
from kvasir_workers.quantization.scheme import SCHEMES, QuantizationSpec
from tests.unit.workers.model.paged_prompts import PAGE_SIZE, PAGES_PER_SEQUENCE, PagedPrompts

TEXTS = (
    "Kvasir was the being of the Norse tales who could answer any question put to him.",
    "The command line takes a model, a configuration file and a few familiar flags.",
    "Pages are kept in a prefix tree, so that a prompt that was seen before is not computed again.",
    "What is the capital of France? The capital of France is Paris.",
)


def token_ids(text: str) -> list[int]:
    tokenizer = Tokenizer.from_file(str(demo_model_path() / "tokenizer.json"))
    return list(tokenizer.encode(text).ids[: PAGE_SIZE * PAGES_PER_SEQUENCE])


def all_logits(quantization: QuantizationSpec | None) -> list[Tensor]:
    decoder = load_decoder(demo_model_path(), torch.float32, torch.device("cpu"), quantization)
    return [PagedPrompts(decoder, 1).step({0: token_ids(text)})[0] for text in TEXTS]


def perplexity(logits: list[Tensor]) -> float:
    losses = [
        F.cross_entropy(rows[:-1], torch.tensor(token_ids(text)[1:]), reduction="none")
        for rows, text in zip(logits, TEXTS, strict=True)
    ]
    return float(torch.cat(losses).mean().exp())


@pytest.fixture(scope="module")
def unquantized() -> list[Tensor]:
    return all_logits(None)


@pytest.mark.parametrize(
    ("name", "least_cosine", "largest_rise"),
    [
        ("int8", 0.999, 0.02),
        ("int4", 0.96, 0.25),
        ("int4-g64", 0.94, 0.35),
        ("int4-g128", 0.92, 0.5),
        ("fp8", 0.99, 0.1),
        ("fp8-block", 0.99, 0.1),
    ],
)
def test_demo_model_keeps_what_it_knows(
    name: str, least_cosine: float, largest_rise: float, unquantized: list[Tensor]
) -> None:
    ours = all_logits(SCHEMES[name])
    cosine = torch.cosine_similarity(torch.cat(ours), torch.cat(unquantized), dim=-1)
    assert cosine.mean() > least_cosine
    assert perplexity(ours) < (1 + largest_rise) * perplexity(unquantized)
