"""What keys and values of 8 bits are multiplied with when they are read: the checkpoint's scales, or 1.

e4m3 reaches from 2**-9 to 448 with the same relative error from 2**-6 on: keys and values of most models lie within,
unscaled. Scales are fixed, so that a page means the same wherever it goes.
"""

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from kvasir_kernels.paged_cache import CacheScales
from kvasir_protocol.errors import CheckpointError
from kvasir_workers.model.checkpoint import StoredTensor, open_tensors, read_stored_tensors
from kvasir_workers.model.spec import DecoderSpec

_NAMES = {
    "key": ("self_attn.k_scale", "self_attn.k_proj.k_scale", "self_attn.k_proj.output_scale"),
    "value": ("self_attn.v_scale", "self_attn.v_proj.v_scale", "self_attn.v_proj.output_scale"),
}
"""As compressed-tensors writes them, and as it and others did before."""


def read_cache_scales(directory: Path, spec: DecoderSpec, device: torch.device) -> list[CacheScales]:
    """Each layer's, [K] float32 for keys and for values. Raises CheckpointError for scales that can't be used."""
    stored = read_stored_tensors(directory)
    return [
        CacheScales(
            *(_read(stored, f"model.layers.{layer}", _NAMES[side], spec).to(device) for side in ("key", "value"))
        )
        for layer in range(spec.num_layers)
    ]


def _read(stored: Mapping[str, StoredTensor], layer: str, names: tuple[str, ...], spec: DecoderSpec) -> Tensor:
    found = [name for name in (f"{layer}.{name}" for name in names) if name in stored]
    if not found:
        return torch.ones(spec.num_kv_heads)
    with open_tensors(stored[found[0]].file) as tensors:
        scale = tensors.get_tensor(found[0]).float().flatten()
    if len(scale) not in (1, spec.num_kv_heads) or not (scale > 0).all() or not scale.isfinite().all():
        raise CheckpointError(
            f"{stored[found[0]].file}: {found[0]} must be a number above 0, or one for each of {spec.num_kv_heads} "
            "heads; leave out the 8-bit cache, or take another checkpoint"
        )
    return scale.expand(spec.num_kv_heads).contiguous()
