"""A whole model on the device: pages, kernels and all."""

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from kvasir_kernels.paged_cache import AttentionBatch, LayerCache
from kvasir_workers.model.loader import load_decoder
from tests.checkpoints import MODEL_TYPES, make_checkpoint

pytestmark = pytest.mark.gpu


@pytest.mark.parametrize("family", MODEL_TYPES)
@torch.inference_mode()
def test_float32_logits_are_those_of_transformers(family: str, tmp_path: Path) -> None:
    device = torch.device("cuda")
    directory = make_checkpoint(tmp_path, family)
    decoder = load_decoder(directory, torch.float32, device)
    spec, num_tokens, page_size = decoder.spec, 90, 16
    token_ids = torch.randint(3, 256, (num_tokens,), generator=torch.Generator().manual_seed(1)).to(device)
    shape = (8, page_size, spec.num_kv_heads, spec.head_dim)
    caches = [LayerCache(*(torch.full(shape, torch.nan, device=device) for _ in "kv")) for _ in range(spec.num_layers)]
    pages = torch.tensor([5, 2, 7, 0, 1, 6], device=device)
    logits = []
    # A chunk, a chunk that goes on from it, and the rest token by token.
    for start, end in [(0, 50), (50, 80), *((index, index + 1) for index in range(80, num_tokens))]:
        positions = torch.arange(start, end, device=device)
        slots = pages[positions // page_size] * page_size + positions % page_size
        batch = AttentionBatch((end - start,), (end,), pages.unsqueeze(0), int(end - start == 1))
        logits.append(decoder.logits(decoder(token_ids[start:end], positions, slots, caches, batch)))
    reference = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32).to(device)
    expected = reference(token_ids.unsqueeze(0)).logits[0]
    torch.testing.assert_close(torch.cat(logits), expected, atol=1e-3, rtol=1e-3)
