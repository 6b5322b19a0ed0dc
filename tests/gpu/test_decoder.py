"""Whole models on the device: pages, kernels and all."""

from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

from kvasir_kernels.paged_cache import AttentionBatch, LayerCache
from kvasir_workers.model.cache_scales import read_cache_scales
from kvasir_workers.model.decoder import Decoder
from kvasir_workers.model.loader import load_decoder
from kvasir_workers.quantization.scheme import SCHEMES, QuantizationSpec
from tests.checkpoints import MODEL_TYPES, make_checkpoint
from tests.float8_checkpoints import KINDS, SIZES, Float8Kind, make_float8_checkpoint, quantization_of

pytestmark = pytest.mark.gpu

CPU = torch.device("cpu")
NUM_TOKENS, PAGE_SIZE = 90, 16
FLOAT8 = torch.float8_e4m3fn


def token_ids() -> Tensor:
    return torch.randint(3, 256, (NUM_TOKENS,), generator=torch.Generator().manual_seed(1))


@torch.inference_mode()
def all_logits(decoder: Decoder, device: torch.device, cache_dtype: torch.dtype | None = None) -> Tensor:
    """Of a chunk, of a chunk that goes on from it, and of the rest token by token; on the host, in float32."""
    spec, tokens = decoder.spec, token_ids().to(device)
    shape = (8, PAGE_SIZE, spec.num_kv_heads, spec.head_dim)
    caches = [
        LayerCache(*(torch.full(shape, torch.nan, dtype=cache_dtype or decoder.dtype, device=device) for _ in "kv"))
        for _ in range(spec.num_layers)
    ]
    pages = torch.tensor([5, 2, 7, 0, 1, 6], device=device)
    logits = []
    for start, end in [(0, 50), (50, 80), *((index, index + 1) for index in range(80, NUM_TOKENS))]:
        positions = torch.arange(start, end, device=device)
        slots = pages[positions // PAGE_SIZE] * PAGE_SIZE + positions % PAGE_SIZE
        batch = AttentionBatch((end - start,), (end,), pages.unsqueeze(0), int(end - start == 1))
        logits.append(decoder.logits(decoder(tokens[start:end], positions, slots, caches, batch)))
    return torch.cat(logits).cpu()


@pytest.mark.parametrize("family", MODEL_TYPES)
def test_float32_logits_are_those_of_transformers(family: str, tmp_path: Path) -> None:
    device = torch.device("cuda")
    directory = make_checkpoint(tmp_path, family)
    logits = all_logits(load_decoder(directory, torch.float32, device), device)
    reference = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32)
    with torch.inference_mode():
        expected = reference(token_ids().unsqueeze(0)).logits[0]
    torch.testing.assert_close(logits, expected, atol=1e-3, rtol=1e-3)


def assert_kernels_say_what_references_say(
    directory: Path, dtype: torch.dtype, quantization: QuantizationSpec | None
) -> None:
    """A sum that differs in its last bit may be rounded to another float8: in bfloat16, after most tokens, it is."""
    on_cpu, on_gpu = (
        all_logits(load_decoder(directory, dtype, device, quantization), device)
        for device in (CPU, torch.device("cuda"))
    )
    assert torch.cosine_similarity(on_gpu, on_cpu, dim=-1).mean() > (0.998 if dtype == torch.float32 else 0.985)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", ["fp8", "fp8-block"])
def test_float8_model_says_what_the_references_say(name: str, dtype: torch.dtype, tmp_path: Path) -> None:
    directory = make_checkpoint(tmp_path, "Qwen3ForCausalLM", **SIZES)
    assert_kernels_say_what_references_say(directory, dtype, SCHEMES[name])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", KINDS.values(), ids=[name.replace(" ", "_") for name in KINDS])
def test_float8_checkpoint_says_what_the_references_say(kind: Float8Kind, dtype: torch.dtype, tmp_path: Path) -> None:
    directory = make_float8_checkpoint(tmp_path, kind)
    assert_kernels_say_what_references_say(directory, dtype, quantization_of(directory))


@pytest.mark.parametrize("name", ["fp8", "fp8-block", None])
def test_float8_cache_says_what_the_references_say(name: str | None, tmp_path: Path) -> None:
    directory = make_checkpoint(tmp_path, "LlamaForCausalLM", **SIZES)
    logits = []
    for device in (CPU, torch.device("cuda")):
        decoder = load_decoder(directory, torch.bfloat16, device, None if name is None else SCHEMES[name])
        decoder.scale_cache(read_cache_scales(directory, decoder.spec, device))
        logits.append(all_logits(decoder, device, FLOAT8))
    assert torch.cosine_similarity(*logits, dim=-1).mean() > 0.985
