"""Operations on pages: what is written to them, and parts of them that move."""

from functools import partial

import torch

from kvasir_kernels.move_pages import reference as reference_moves
from kvasir_kernels.move_pages.reference import PagePart
from kvasir_kernels.paged_cache import LayerCache
from kvasir_kernels.rotate_and_write import reference as reference_rotation
from kvasir_kernels.rotate_and_write.reference import HeadNorms
from kvasir_kernels.write_kv import reference as reference_write
from tests.kernel_cases.checking import (
    DTYPES,
    ROUNDING,
    Case,
    assert_close,
    name_of,
    nan_cache,
    new_memory_is_nan,
    random,
)

FLOAT8 = torch.float8_e4m3fn
NARROW = {
    "float8 by heads": (FLOAT8, "heads"),
    "float8 by tokens": (FLOAT8, "tokens"),
    "int8 by heads": (torch.int8, "heads"),
    "int8 by tokens": (torch.int8, "tokens"),
}
SLOTS = (11, -1, 0, 7, -1, 4)


def assert_same_cache(actual: LayerCache, expected: LayerCache) -> None:
    """Numbers of 8 bits may be rounded to either neighbour where they lie between two."""
    for mine, right in ((actual.key, expected.key), (actual.value, expected.value)):
        if mine.dtype.itemsize > 1:
            assert torch.equal(mine.nan_to_num(9.0), right.nan_to_num(9.0))
        else:
            steps = (mine.view(torch.int8).int() - right.view(torch.int8).int()).abs()
            assert steps.max() <= 1
            assert (steps > 0).float().mean() < 0.02
    if actual.scales is not None and expected.scales is not None:
        torch.testing.assert_close(actual.scales.key, expected.scales.key, equal_nan=True)
        torch.testing.assert_close(actual.scales.value, expected.scales.value, equal_nan=True)


def _check_write(
    dtype: torch.dtype, num_kv_heads: int, head_dim: int, device: torch.device, *, narrow: str | None = None
) -> None:
    from kvasir_kernels.write_kv.kernel import write_kv

    shape = (4, 3, num_kv_heads, head_dim)
    stored, scaled_by = NARROW[narrow] if narrow else (dtype, "nothing")
    actual, expected = (nan_cache(shape, stored, device, scaled_by) for _ in "ab")
    key, value = random(device, dtype, 6, 2 * num_kv_heads, head_dim).chunk(2, dim=1)
    key[0, 0] = 0
    slots = torch.tensor(SLOTS, device=device)
    write_kv(key, value, slots, actual)
    reference_write.write_kv(key, value, slots, expected)
    assert_same_cache(actual, expected)


def _check_rotate_and_write(
    dtype: torch.dtype,
    heads: tuple[int, int, int],
    device: torch.device,
    *,
    num_turned: int | None = None,
    interleaved: bool = False,
    is_normed: bool = True,
    narrow: str | None = None,
) -> None:
    from kvasir_kernels.rotate_and_write.kernel import rotate_and_write

    num_heads, num_kv_heads, head_dim = heads
    projected = random(device, dtype, 6, num_heads + 2 * num_kv_heads, head_dim)
    norms = HeadNorms(*random(device, dtype, 2, head_dim), 1e-6) if is_normed else None
    angles = 10 * random(device, torch.float32, 6, (num_turned or head_dim) // 2)
    slots = torch.tensor(SLOTS, device=device)
    stored, scaled_by = NARROW[narrow] if narrow else (dtype, "nothing")
    actual, expected = (nan_cache((4, 3, *heads[1:]), stored, device, scaled_by) for _ in "ab")
    queries = [
        rotate(projected.clone(), norms, angles.cos(), angles.sin(), slots, cache, interleaved=interleaved)
        for rotate, cache in ((rotate_and_write, actual), (reference_rotation.rotate_and_write, expected))
    ]
    tolerance = 4 * ROUNDING[dtype]
    assert_close(queries[0], queries[1], tolerance)
    if narrow:
        assert_same_cache(actual, expected)
    else:
        assert_close(actual.key.nan_to_num(9.0), expected.key.nan_to_num(9.0), tolerance)
        assert torch.equal(actual.value.nan_to_num(9.0), expected.value.nan_to_num(9.0))


def _check_last_of_many_slots(device: torch.device) -> None:
    """Their numbers are more than 32 bits count."""
    from kvasir_kernels.write_kv.kernel import write_kv

    cache = LayerCache(*(torch.empty(8200, 64, 32, 128, dtype=FLOAT8, device=device).view(torch.int8) for _ in "kv"))
    assert cache.key.numel() > 2**31
    key, value = (torch.ones(1, 32, 128, dtype=torch.int8, device=device) for _ in "kv")
    write_kv(key, value, torch.tensor([8200 * 64 - 1], device=device), cache)
    assert cache.key[-1, -1].eq(1).all()
    assert cache.value[-1, -1].eq(1).all()


def _check_moves(dtype: torch.dtype, part: PagePart, device: torch.device) -> None:
    from kvasir_kernels.move_pages.kernel import gather_pages, scatter_pages

    pages = random(device, torch.float32, 4, 2, 7, 3, 6, 5).to(dtype)
    page_ids = torch.tensor([5, 0, 3], device=device)
    with new_memory_is_nan():
        content = gather_pages(pages, page_ids, part)
    assert torch.equal(content, reference_moves.gather_pages(pages, page_ids, part))
    actual, expected = pages.clone(), pages.clone()
    targets, place = torch.tensor([1, 6, 2], device=device), PagePart(0, part.num_layers, 0, part.num_heads)
    scatter_pages(content, actual, targets, place)
    reference_moves.scatter_pages(content, expected, targets, place)
    assert torch.equal(actual, expected)
    assert not torch.equal(actual, pages)


def cases() -> dict[str, Case]:
    found: dict[str, Case] = {}
    for dtype in DTYPES:
        name = name_of(dtype)
        for num_kv_heads, head_dim in [(1, 1), (2, 5), (3, 80), (8, 128)]:
            found[f"write_kv {name} {num_kv_heads}x{head_dim}"] = partial(_check_write, dtype, num_kv_heads, head_dim)
        found[f"rotate_and_write {name}"] = partial(_check_rotate_and_write, dtype, (6, 3, 80))
    for heads in [(1, 1, 2), (6, 3, 10), (14, 2, 64), (40, 8, 128)]:
        found[f"rotate_and_write {heads}"] = partial(_check_rotate_and_write, torch.float16, heads, is_normed=False)
    for interleaved in (False, True):
        found[f"rotate_and_write of a part, interleaved {interleaved}"] = partial(
            _check_rotate_and_write, torch.float32, (5, 1, 20), num_turned=12, interleaved=interleaved
        )
    for narrow in NARROW:
        found[f"write_kv {narrow}"] = partial(_check_write, torch.float32, 3, 80, narrow=narrow)
        found[f"rotate_and_write {narrow}"] = partial(_check_rotate_and_write, torch.float32, (4, 2, 64), narrow=narrow)
    found["write_kv beyond 32 bits"] = _check_last_of_many_slots
    for part in [PagePart(0, 4, 0, 6), PagePart(1, 2, 3, 2), PagePart(3, 1, 5, 1)]:
        for dtype in (torch.bfloat16, torch.int8):
            found[f"move_pages {name_of(dtype)} {part}"] = partial(_check_moves, dtype, part)
    return found
