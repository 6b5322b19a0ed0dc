"""Kernels against float64: sizes as they are served on a GPU, small ones in the interpreter."""

from functools import partial

import torch
from torch import Tensor

from kvasir_kernels.float8.reference import Grain, quantize, quantize_weight
from kvasir_kernels.paged_cache import AttentionBatch, LayerCache
from kvasir_kernels.write_kv.reference import write_kv
from tests.kernel_cases.checking import Case, nan_cache, random
from tests.kernel_cases.pages import NARROW

HALF = torch.bfloat16
EPS = torch.finfo(HALF).eps
PAGE_SIZE = 16


def _is_gpu(device: torch.device) -> bool:
    return device.type == "cuda"


def _assert_near(actual: Tensor, exact: Tensor, error: float, scale: Tensor | float = 1.0) -> None:
    """error: of numbers of the size of scale."""
    assert actual.shape == exact.shape
    assert ((actual.double() - exact).abs() <= error * scale).all(), ((actual.double() - exact).abs() / scale).max()


def _check_norm(device: torch.device) -> None:
    from kvasir_kernels.rms_norm.kernel import add_rms_norm

    x, residual = random(device, HALF, 2, 1000 if _is_gpu(device) else 3, 4096).unbind()
    weight = random(device, HALF, 4096)
    normed, total = add_rms_norm(x, residual, weight, 1e-5)
    wide = x.double() + residual.double()
    _assert_near(total, wide, EPS, wide.abs())
    wide = total.double()
    exact = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + 1e-5) * weight.double()
    _assert_near(normed, exact, 2 * EPS, exact.abs())


def _check_gate(activation: str, device: torch.device) -> None:
    from kvasir_kernels.silu_mul import kernel

    gate_up = 3 * random(device, HALF, 1000 if _is_gpu(device) else 2, 2 * 3000)
    gate, up = gate_up.double().chunk(2, -1)
    if activation == "gelu":
        exact = gate * 0.5 * (1 + torch.tanh((2 / torch.pi) ** 0.5 * (gate + 0.044715 * gate**3))) * up
    else:
        exact = gate * torch.sigmoid(gate) * up
    _assert_near(getattr(kernel, f"{activation}_mul")(gate_up), exact, 2 * EPS, exact.abs() + 1e-6)


def _check_rotation(device: torch.device) -> None:
    """A turn of pairs is a product of complex numbers."""
    from kvasir_kernels.rotate_and_write.kernel import rotate_and_write

    num_tokens = 500 if _is_gpu(device) else 5
    heads = random(device, HALF, num_tokens, 12, 64)
    angles = torch.arange(num_tokens, device=device).unsqueeze(-1) * 100 / (torch.arange(32, device=device) + 1)
    cache = LayerCache(*torch.zeros(2, num_tokens, PAGE_SIZE, 2, 64, dtype=HALF, device=device))
    exact = torch.complex(*heads.double().chunk(2, -1)) * torch.polar(torch.ones_like(angles), angles).unsqueeze(1)
    exact = torch.cat((exact.real, exact.imag), -1)
    query = rotate_and_write(heads, None, angles.cos(), angles.sin(), torch.arange(num_tokens, device=device), cache)
    size = exact.abs().amax(-1, keepdim=True)
    _assert_near(query, exact[:, :8], EPS, size[:, :8])
    _assert_near(cache.key.view(-1, 2, 64)[:num_tokens], exact[:, 8:10], EPS, size[:, 8:10])


def _check_attention(narrow: str | None, num_new: int, device: torch.device) -> None:
    """A long context: errors of the sum over it may not grow with it, whatever the cache holds a number in."""
    from kvasir_kernels.paged_attention.kernel import paged_attention

    context, num_heads, num_kv_heads, head_dim = 40000 if _is_gpu(device) else 400, 8, 2, 64
    num_pages = -(-context // PAGE_SIZE)
    stored, scaled_by = NARROW[narrow] if narrow else (HALF, "nothing")
    cache = nan_cache((num_pages, PAGE_SIZE, num_kv_heads, head_dim), stored, device, scaled_by)
    tables = torch.randperm(num_pages, generator=torch.Generator().manual_seed(2)).unsqueeze(0).to(device)
    positions = torch.arange(context, device=device)
    slots = tables[0, positions // PAGE_SIZE] * PAGE_SIZE + positions % PAGE_SIZE
    key, value = random(device, HALF, context, 2 * num_kv_heads, head_dim).chunk(2, 1)
    write_kv(key, value + 1, slots, cache)
    query = random(device, HALF, num_new, num_heads, head_dim)
    batch = AttentionBatch((num_new,), (context,), tables, int(num_new == 1))
    attended = paged_attention(query, cache, batch, 0.1, None)
    keys, values = (
        (pages.double() if scale is None else pages.double() * scale.unsqueeze(-1)).view(-1, num_kv_heads, head_dim)[
            slots
        ]
        for pages, scale in zip((cache.key, cache.value), cache.scale_tensors, strict=True)
    )
    scores = torch.einsum("tkgd,lkd->kgtl", query.double().view(num_new, num_kv_heads, -1, head_dim), keys).mul_(0.1)
    last = torch.arange(context - num_new, context, device=device).unsqueeze(-1)
    weights = scores.masked_fill_(positions > last, -torch.inf).softmax(-1)
    exact = torch.einsum("kgtl,lkd->tkgd", weights, values).reshape(attended.shape)
    _assert_near(attended, exact, 2 * EPS, exact.abs() + 0.5)


def _check_product(grain: str, device: torch.device) -> None:
    """Many inputs: what is added in few bits may not be more than 128 products."""
    from kvasir_kernels.float8_linear.kernel import float8_linear

    num_inputs = 14336 if _is_gpu(device) else 512
    x, weight = random(device, torch.float32, 33, num_inputs), random(device, torch.float32, 192, num_inputs)
    left, right = quantize(x.abs(), Grain(grain)), quantize_weight(weight.abs(), Grain(grain))
    exact = left.widened().double() @ right.widened().double().T
    # Nothing cancels, so that a sum in few bits would lose whole products at its end.
    _assert_near(float8_linear(left, right, None, torch.float32), exact, 2e-4, exact.abs())


def cases() -> dict[str, Case]:
    found: dict[str, Case] = {"float64 add_rms_norm": _check_norm, "float64 rotate_and_write": _check_rotation}
    for activation in ("silu", "gelu"):
        found[f"float64 {activation}_mul"] = partial(_check_gate, activation)
    for narrow in (None, "float8 by heads", "int8 by tokens"):
        for num_new in (1, 200):
            name = f"float64 attention {narrow or 'bfloat16'}, {num_new} new"
            found[name] = partial(_check_attention, narrow, num_new)
    for grain in ("row", "block"):
        found[f"float64 float8_linear {grain}"] = partial(_check_product, grain)
    return found
