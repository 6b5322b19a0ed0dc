"""Keys and values in float8: which scales they are stored by, and what that costs."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from kvasir_kernels.paged_cache import CacheScales, LayerCache
from kvasir_protocol.errors import CheckpointError
from kvasir_workers.model.cache_scales import read_cache_scales
from kvasir_workers.model.decoder import Decoder
from kvasir_workers.model.fusion import plain_form
from kvasir_workers.model.loader import load_decoder, load_spec
from tests.checkpoints import make_checkpoint
from tests.unit.workers.model.paged_prompts import PagedPrompts

CPU = torch.device("cpu")
TOKENS = list(range(5, 45))
FLOAT8 = torch.float8_e4m3fn


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    return make_checkpoint(tmp_path, "Qwen3ForCausalLM")


def add_tensors(path: Path, **tensors: Tensor) -> None:
    """Beside the weights; names as they are in the first layer."""
    named = {f"model.layers.0.{name}": tensor for name, tensor in tensors.items()}
    save_file(load_file(path / "model.safetensors") | named, path / "model.safetensors")


def scales_of(path: Path) -> list[CacheScales]:
    return read_cache_scales(path, load_spec(path), CPU)


def float8_prompts(path: Path, scales: list[CacheScales]) -> PagedPrompts:
    decoder = load_decoder(path, torch.float32, CPU)
    decoder.scale_cache(scales)
    prompts = PagedPrompts(decoder, 1)
    prompts.caches = [LayerCache(cache.key.to(FLOAT8), cache.value.to(FLOAT8)) for cache in prompts.caches]
    return prompts


def test_scales_are_1_where_the_checkpoint_has_none(checkpoint: Path) -> None:
    scales = scales_of(checkpoint)
    assert len(scales) == 3
    assert all(torch.equal(tensor, torch.ones(2)) for scale in scales for tensor in (scale.key, scale.value))


@pytest.mark.parametrize(
    ("key_name", "value_name"),
    [
        ("self_attn.k_scale", "self_attn.v_scale"),
        ("self_attn.k_proj.k_scale", "self_attn.v_proj.v_scale"),
        ("self_attn.k_proj.output_scale", "self_attn.v_proj.output_scale"),
    ],
)
def test_scales_of_the_checkpoint_are_taken_by_any_of_their_names(
    key_name: str, value_name: str, checkpoint: Path
) -> None:
    add_tensors(checkpoint, **{key_name: torch.tensor(0.5), value_name: torch.tensor([2.0, 3.0])})
    first, second, _ = scales_of(checkpoint)
    assert torch.equal(first.key, torch.tensor([0.5, 0.5]))
    assert torch.equal(first.value, torch.tensor([2.0, 3.0]))
    assert torch.equal(second.key, torch.ones(2))


@pytest.mark.parametrize("wrong", [torch.tensor(0.0), torch.tensor(-1.0), torch.tensor(torch.inf), torch.ones(3)])
def test_scales_that_can_not_be_are_refused_by_name(wrong: Tensor, checkpoint: Path) -> None:
    add_tensors(checkpoint, **{"self_attn.k_scale": wrong})
    with pytest.raises(CheckpointError, match=r"model\.layers\.0\.self_attn\.k_scale must be a number above 0"):
        scales_of(checkpoint)


def test_scales_of_a_cache_do_not_keep_weights_from_being_loaded(checkpoint: Path) -> None:
    expected = load_decoder(checkpoint, torch.float32, CPU).state_dict()
    add_tensors(checkpoint, **{"self_attn.k_scale": torch.tensor(0.5), "self_attn.v_scale": torch.tensor(0.5)})
    found = load_decoder(checkpoint, torch.float32, CPU).state_dict()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in found.items())


@pytest.mark.parametrize("scale", [0.05, 1.0])
def test_float8_cache_says_nearly_the_same(scale: float, checkpoint: Path) -> None:
    expected = PagedPrompts(load_decoder(checkpoint, torch.float32, CPU), 1).step({0: TOKENS})[0]
    scales = [CacheScales(torch.full((2,), scale), torch.full((2,), scale)) for _ in range(3)]
    ours = float8_prompts(checkpoint, scales).step({0: TOKENS})[0]
    assert torch.cosine_similarity(ours, expected, dim=-1).mean() > 0.98


def test_pages_hold_what_the_scales_make_of_keys_and_values(checkpoint: Path) -> None:
    """A power of two is lost in no digit."""
    plain, scaled = (
        float8_prompts(checkpoint, [CacheScales(torch.full((2,), scale), torch.ones(2)) for _ in range(3)])
        for scale in (1.0, 2.0)
    )
    for prompts in (plain, scaled):
        prompts.step({0: TOKENS})
    keys = [prompts.caches[0].key.float()[prompts.page_tables[0, :9]] for prompts in (plain, scaled)]
    is_normal = keys[1].abs() > 2**-6
    assert is_normal.float().mean() > 0.9
    assert torch.equal(keys[0][is_normal], 2 * keys[1][is_normal])


def test_decoder_with_a_scaled_cache_goes_operation_by_operation(checkpoint: Path) -> None:
    decoder: Decoder = load_decoder(checkpoint, torch.float32, CPU, packs=True)
    plain = plain_form(decoder)
    assert plain is not None
    decoder.scale_cache(scales_of(checkpoint))
    assert len(decoder.cache_scales) == 3
    assert plain_form(decoder) is None
