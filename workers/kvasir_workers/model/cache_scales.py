"""What keys and values of 8 bits are multiplied with when they are read.

e4m3 reaches from 2**-9 to 448 with the same relative error from 2**-6 on: keys and values of most models lie within,
unscaled. So its scales are the checkpoint's, or 1: fixed, and a page means the same wherever it goes. Integers have no
such reach: each head of each token gets a scale when it is written, beside the pages.
"""

from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from kvasir_kernels.paged_cache import CacheScales
from kvasir_protocol.errors import CheckpointError
from kvasir_workers.engine_directory.manifest import is_engine_directory
from kvasir_workers.engine_directory.settings import CACHE_SCALES
from kvasir_workers.model.checkpoint import StoredTensor, open_tensors, read_header, read_stored_tensors
from kvasir_workers.model.spec import DecoderSpec

TOKEN_SCALE_BYTES = torch.float32.itemsize

_NAMES = {
    "key": ("self_attn.k_scale", "self_attn.k_proj.k_scale", "self_attn.k_proj.output_scale"),
    "value": ("self_attn.v_scale", "self_attn.v_proj.v_scale", "self_attn.v_proj.output_scale"),
}
"""As compressed-tensors writes them, and as it and others did before."""


def read_cache_scales(directory: Path, spec: DecoderSpec, device: torch.device) -> list[CacheScales]:
    """Each layer's, [K] float32 for keys and for values. Raises CheckpointError for scales that can't be used."""
    stored = _stored_tensors(directory)
    return [
        CacheScales(
            *(_read(stored, f"model.layers.{layer}", _NAMES[side], spec).to(device) for side in ("key", "value"))
        )
        for layer in range(spec.num_layers)
    ]


def copy_cache_scales(checkpoint: Path, spec: DecoderSpec, directory: Path) -> None:
    """Put a checkpoint's scales, if it has any, into an engine directory. Raises CheckpointError."""
    stored, copied = read_stored_tensors(checkpoint), {}
    for layer in range(spec.num_layers):
        for name in (f"model.layers.{layer}.{name}" for names in _NAMES.values() for name in names):
            if name in stored:
                with open_tensors(stored[name].file) as tensors:
                    copied[name] = tensors.get_tensor(name)
    if copied:
        save_file(copied, directory / CACHE_SCALES)


def _stored_tensors(directory: Path) -> Mapping[str, StoredTensor]:
    """Where scales may be among."""
    if not is_engine_directory(directory):
        return read_stored_tensors(directory)
    file = directory / CACHE_SCALES
    return read_header(file) if file.is_file() else {}


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


def token_scales(spec: DecoderSpec, num_pages: int, page_size: int, device: torch.device) -> list[CacheScales]:
    """Room for each layer's, [N, P, K] float32 for keys and for values."""
    shape = (num_pages, page_size, spec.num_kv_heads)
    return [
        CacheScales(*(torch.zeros(shape, dtype=torch.float32, device=device) for _ in range(2)))
        for _ in range(spec.num_layers)
    ]
