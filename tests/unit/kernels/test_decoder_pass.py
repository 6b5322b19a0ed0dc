"""A step through a whole decoder in one call, against the references of its operations one after the other."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TypeVar

import pytest
import torch
from torch import Tensor

from kvasir_kernels.decoder_pass.reference import Affine, PlainDecoder, PlainLayer, StepTokens, decoder_pass
from kvasir_kernels.dispatch import NativePass, PackedWeight, fuse_decoder, pack_weight
from kvasir_kernels.paged_cache import AttentionBatch, LayerCache
from kvasir_kernels.rotate_and_write.reference import HeadNorms

W = TypeVar("W")

DTYPES = [torch.float32, torch.bfloat16]
TOLERANCE = {torch.float32: 2e-5, torch.bfloat16: 6e-2}
PAGE_SIZE, NUM_PAGES, VOCAB_SIZE = 4, 260, 97


@dataclass(frozen=True)
class Shape:
    """H query heads, K key heads of D; E, I: hidden and intermediate size; windows: one for each layer."""

    heads: tuple[int, int, int] = (4, 2, 16)
    hidden_size: int = 34
    intermediate_size: int = 50
    windows: tuple[int | None, ...] = (None, None)
    has_bias: bool = False
    has_head_norms: bool = False
    is_tied: bool = True


SHAPES = {
    "plain": Shape(),
    "biases": Shape(has_bias=True),
    "head norms": Shape(has_head_norms=True, heads=(6, 3, 48)),
    "windows": Shape(windows=(5, None, 3)),
    "embedding as it lies": Shape(is_tied=False),
    "one head": Shape(heads=(1, 1, 32), hidden_size=2, intermediate_size=2),
    "wide": Shape(hidden_size=260, intermediate_size=1500, has_bias=True),
}

# New tokens, and tokens visible at the end of the step, of each sequence.
STEPS = {
    "one token": [(1, 1)],
    "decodes": [(1, 9), (1, 64), (1, 130)],
    "a chunk": [(37, 50)],
    "both": [(1, 3), (1, 70), (5, 5), (20, 33)],
    "several chunks of the feed-forward": [(1, 8), (300, 301)],
}


def random(*shape: int, dtype: torch.dtype) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape))).to(dtype)


def make_decoder(shape: Shape, dtype: torch.dtype, form: Callable[[Tensor], W]) -> PlainDecoder[W]:
    """Each matrix in that form."""
    (num_heads, num_kv_heads, head_dim), hidden = shape.heads, shape.hidden_size

    def affine(num_inputs: int, num_outputs: int) -> Affine[W]:
        weight = random(num_outputs, num_inputs, dtype=torch.float32) / num_inputs**0.5
        return Affine(form(weight.to(dtype)), random(num_outputs, dtype=dtype) if shape.has_bias else None)

    angles = 10 * random(400, head_dim // 2, dtype=torch.float32)
    norms = HeadNorms(*(1 + random(2, head_dim, dtype=dtype) / 9), 1e-6) if shape.has_head_norms else None
    layers = tuple(
        PlainLayer(
            attention_norm=1 + random(hidden, dtype=dtype) / 9,
            qkv=affine(hidden, (num_heads + 2 * num_kv_heads) * head_dim),
            head_norms=norms,
            output=affine(num_heads * head_dim, hidden),
            feed_forward_norm=1 + random(hidden + 1, dtype=dtype)[1:] / 9,
            gate_up=affine(hidden, 2 * shape.intermediate_size),
            down=affine(shape.intermediate_size, hidden),
            window=window,
        )
        for window in shape.windows
    )
    embedding = random(VOCAB_SIZE, hidden, dtype=dtype)
    return PlainDecoder(
        embedding=form(embedding) if shape.is_tied else embedding,
        layers=layers,
        norm=random(hidden, dtype=dtype),
        angles=torch.cat((angles.cos(), angles.sin()), dim=-1),
        eps=1e-6,
        num_heads=num_heads,
        num_kv_heads=num_kv_heads,
        head_dim=head_dim,
    )


def packed(weight: Tensor) -> Tensor | PackedWeight:
    form = pack_weight(weight, has_rows=True)
    return weight if form is None else form


def fused(shape: Shape, dtype: torch.dtype) -> NativePass | None:
    return fuse_decoder(make_decoder(shape, dtype, packed))


def make_step(lengths: list[tuple[int, int]]) -> StepTokens:
    """Pages in random order."""
    draw = torch.Generator().manual_seed(5)
    order = torch.randperm(NUM_PAGES, generator=draw)
    tables = order[: 80 * len(lengths)].view(len(lengths), 80) if len(lengths) <= 3 else order.view(4, 65)
    positions = [torch.arange(context - new, context) for new, context in lengths]
    slots = [tables[i, p // PAGE_SIZE] * PAGE_SIZE + p % PAGE_SIZE for i, p in enumerate(positions)]
    query_lens, context_lens = (tuple(column) for column in zip(*lengths, strict=True))
    batch = AttentionBatch(query_lens, context_lens, tables, query_lens.count(1))
    token_ids = torch.randint(0, VOCAB_SIZE, (sum(query_lens),), generator=draw)
    return StepTokens(token_ids, torch.cat(positions), torch.cat(slots), batch)


def make_caches(shape: Shape, step: StepTokens, dtype: torch.dtype) -> list[LayerCache]:
    """What the sequences have cached is random, every other slot is NaN."""
    tables, known = step.batch.page_tables, torch.zeros(NUM_PAGES * PAGE_SIZE, dtype=torch.bool)
    for table, new, context in zip(tables, step.batch.query_lens, step.batch.context_lens, strict=True):
        positions = torch.arange(context - new)
        known[table[positions // PAGE_SIZE] * PAGE_SIZE + positions % PAGE_SIZE] = True
    _, num_kv_heads, head_dim = shape.heads
    size = (NUM_PAGES, PAGE_SIZE, num_kv_heads, head_dim)
    caches = []
    for number in range(len(shape.windows)):
        key, value = random(2, *size, dtype=dtype).roll(number, 1)
        key.view(-1, num_kv_heads, head_dim)[~known] = torch.nan
        value.view(-1, num_kv_heads, head_dim)[~known] = torch.nan
        caches.append(LayerCache(key, value))
    return caches


def run(shape: Shape, step: StepTokens, dtype: torch.dtype) -> tuple[Tensor, list[LayerCache]]:
    """New memory is NaN."""
    native, caches = fused(shape, dtype), make_caches(shape, step, dtype)
    assert native is not None
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        return native.run(step, caches), caches
    finally:
        torch.use_deterministic_algorithms(False)


def tensors(caches: list[LayerCache]) -> list[Tensor]:
    return [part for cache in caches for part in (cache.key, cache.value)]


@pytest.mark.usefixtures("native")
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("name", SHAPES)
def test_equals_the_references_of_its_operations(name: str, step: str, dtype: torch.dtype) -> None:
    shape, tokens = SHAPES[name], make_step(STEPS[step])
    ours, caches = run(shape, tokens, dtype)
    expected_caches = make_caches(shape, tokens, dtype)
    expected = decoder_pass(make_decoder(shape, dtype, Tensor.clone), tokens, expected_caches)
    assert ours.dtype == dtype
    for actual, wanted in zip([ours, *tensors(caches)], [expected, *tensors(expected_caches)], strict=True):
        torch.testing.assert_close(actual, wanted, atol=TOLERANCE[dtype], rtol=TOLERANCE[dtype], equal_nan=True)


LENGTHS = [(1, 20), (3, 7), (30, 33), (4, 9)]
WANTED = {
    "nobody": [],
    "the last of one": [33],
    "the last of some": [3, 37],
    "the last of all": [0, 3, 33, 37],
    "several last ones": [2, 3, 31, 32, 33],
    "all but the first": list(range(1, 38)),
}


@pytest.mark.usefixtures("native")
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("wanted", WANTED)
@pytest.mark.parametrize("name", SHAPES)
def test_of_all_tokens_keys_and_values_are_written_and_the_wanted_states_returned(
    name: str, wanted: str, dtype: torch.dtype
) -> None:
    shape, rows = SHAPES[name], torch.tensor(WANTED[wanted], dtype=torch.int64)
    tokens = replace(make_step(LENGTHS), wanted=rows)
    ours, caches = run(shape, tokens, dtype)
    expected_caches = make_caches(shape, tokens, dtype)
    expected = decoder_pass(make_decoder(shape, dtype, Tensor.clone), tokens, expected_caches)
    assert ours.shape == (len(rows), shape.hidden_size)
    for actual, right in zip([ours, *tensors(caches)], [expected, *tensors(expected_caches)], strict=True):
        torch.testing.assert_close(actual, right, atol=TOLERANCE[dtype], rtol=TOLERANCE[dtype], equal_nan=True)


@pytest.mark.usefixtures("native")
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("step", STEPS)
def test_any_number_of_threads_gives_the_same_bits(step: str, dtype: torch.dtype) -> None:
    shape, tokens = SHAPES["wide"], make_step(STEPS[step])
    one, _ = run(shape, tokens, dtype)
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    three, _ = run(shape, tokens, dtype)
    torch.set_num_threads(before)
    assert torch.equal(one, three)


@pytest.mark.usefixtures("native")
def test_long_contexts_are_joined_from_their_spans() -> None:
    """Beyond 4096 keys a context is computed in parts."""
    shape, draw = Shape(windows=(None, 4500)), torch.Generator().manual_seed(3)
    tables = torch.randperm(1300, generator=draw)[None]
    batch = AttentionBatch((1,), (5000,), tables, 1)
    position = torch.tensor([4999])
    step = StepTokens(torch.tensor([3]), torch.tensor([7]), tables[0, position // 4] * 4 + position % 4, batch)
    key, value = random(2, 1300, PAGE_SIZE, 2, 16, dtype=torch.float32)
    ours, expected = ([LayerCache(key.clone(), value.clone()) for _ in range(2)] for _ in "ab")
    native = fused(shape, torch.float32)
    assert native is not None
    wanted = decoder_pass(make_decoder(shape, torch.float32, Tensor.clone), step, expected)
    torch.testing.assert_close(native.run(step, ours), wanted, atol=2e-5, rtol=2e-5)


@pytest.mark.usefixtures("native")
def test_padding_is_written_nowhere() -> None:
    shape, tokens = SHAPES["plain"], make_step([(1, 9)])
    padded = StepTokens(
        torch.cat((tokens.token_ids, torch.tensor([0]))),
        torch.cat((tokens.positions, torch.tensor([0]))),
        torch.cat((tokens.slots, torch.tensor([-1]))),
        tokens.batch,
    )
    (plain, caches), (ours, padded_caches) = (run(shape, step, torch.float32) for step in (tokens, padded))
    assert torch.equal(ours[0], plain[0])
    for actual, wanted in zip(tensors(padded_caches), tensors(caches), strict=True):
        torch.testing.assert_close(actual, wanted, atol=0, rtol=0, equal_nan=True)


@pytest.mark.usefixtures("native")
def test_other_caches_are_found_when_they_come() -> None:
    shape, tokens = SHAPES["plain"], make_step([(1, 9)])
    native = fused(shape, torch.float32)
    assert native is not None
    first, second = (make_caches(shape, tokens, torch.float32) for _ in "ab")
    assert torch.equal(native.run(tokens, first), native.run(tokens, second))
    assert torch.equal(first[1].key.nan_to_num(9), second[1].key.nan_to_num(9))


@pytest.mark.usefixtures("native")
@pytest.mark.parametrize("shape", [Shape(heads=(4, 2, 24)), Shape(heads=(2, 1, 40))])
def test_heads_of_other_sizes_go_operation_by_operation(shape: Shape) -> None:
    assert fused(shape, torch.float32) is None


@pytest.mark.usefixtures("native")
def test_weights_that_were_not_packed_go_operation_by_operation() -> None:
    assert fuse_decoder(make_decoder(Shape(), torch.float32, Tensor.clone)) is None


def test_nothing_is_fused_where_only_torch_may_compute(kernels: str) -> None:
    assert (fused(Shape(), torch.float32) is None) == (kernels == "torch")
