"""Sampling on a GPU without a sort: one program for each row.

    read the row      -> the largest logit
    read it again     -> the sum of all weights, and the candidates: tokens within _REACH of the largest, in their order
    search candidates -> where top-k ends, where top-p ends, where the draw falls
    (the whole row instead where the candidates are not enough: too many, or what is kept may go beyond them)

A search halves the span of logits in which the end must lie, and draws it in to logits that there are: it ends when
one value is left. Equal logits are told apart by counting. All sums are of one row, in an order that never changes.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from kvasir_kernels.sample_tokens.reference import SamplingRules

_BLOCK = 4096
"""Logits that a program looks at together, and the most candidates of a row."""

_REACH = tl.constexpr(16.0)  # tokens less likely than exp(-16) of the likeliest are no candidates
_VANISHED = tl.constexpr(104.0)  # exp(-104) is 0 in float32
_LOG2_E = tl.constexpr(1.4426950408889634)


def sample_tokens(logits: Tensor, rules: SamplingRules) -> tuple[Tensor, Tensor]:
    """See reference.py; a row's logits lie side by side."""
    num_rows, width = logits.shape
    token_ids = torch.empty(num_rows, dtype=torch.int64, device=logits.device)
    chosen = torch.empty(num_rows, dtype=torch.float32, device=logits.device)
    candidates = torch.empty(num_rows, _BLOCK, dtype=torch.float32, device=logits.device)
    candidate_ids = torch.empty(num_rows, _BLOCK, dtype=torch.int32, device=logits.device)
    _sample[(num_rows,)](
        logits, rules.streams, rules.positions, rules.temperature, rules.top_k, rules.top_p, rules.min_p,
        candidates, candidate_ids, token_ids, chosen, logits.stride(0), WIDTH=width, BLOCK=_BLOCK, num_warps=8,
    )  # fmt: skip
    return token_ids, chosen


@triton.jit
def _sample(
    logits: tl.tensor,
    streams: tl.tensor,
    positions: tl.tensor,
    temperatures: tl.tensor,
    top_ks: tl.tensor,
    top_ps: tl.tensor,
    min_ps: tl.tensor,
    candidates: tl.tensor,
    candidate_ids: tl.tensor,
    token_ids: tl.tensor,
    chosen: tl.tensor,
    row_stride: tl.int64,
    WIDTH: tl.constexpr,
    BLOCK: tl.constexpr,
) -> None:
    row = tl.program_id(0).to(tl.int64)
    source = logits + row * row_stride
    best, token, has_nan = _likeliest(source, WIDTH, BLOCK)
    heat = tl.load(temperatures + row)
    if (heat > 0) & (best > float("-inf")):
        noise = _noise(tl.load(streams + row), tl.load(positions + row))
        top_k, top_p, min_p = tl.load(top_ks + row), tl.load(top_ps + row), tl.load(min_ps + row)
        rate = _LOG2_E / heat
        if (top_k < WIDTH) | (top_p < 1.0) | (min_p > 0.0):
            places, names = candidates + row * BLOCK, candidate_ids + row * BLOCK
            mass, found, number = _gather(source, places, names, best, heat, rate, WIDTH, BLOCK)
            is_enough = (min_p >= tl.exp2(-_REACH * _LOG2_E)) | (top_k <= number) | (top_p * mass <= found)
            if (number <= BLOCK) & is_enough:
                token = _draw_limited(places, names, number, best, heat, rate, top_k, top_p, min_p, noise, True, BLOCK)
            else:
                token = _draw_limited(source, names, WIDTH, best, heat, rate, top_k, top_p, min_p, noise, False, BLOCK)
        else:
            token = _draw(source, best, rate, noise, WIDTH, BLOCK)
    logit = tl.load(source + token)
    tl.store(token_ids + row, token.to(tl.int64))
    tl.store(chosen + row, tl.where(has_nan > 0, float("nan"), logit))


@triton.jit
def _likeliest(source: tl.tensor, WIDTH: tl.constexpr, BLOCK: tl.constexpr) -> tuple[tl.tensor, tl.tensor, tl.tensor]:
    """Return the largest logit that is a number, the first token that has it, and whether some are none."""
    best = tl.full((), float("-inf"), tl.float32)
    token = tl.full((), 0, tl.int32)
    has_nan = tl.full((), 0, tl.int32)
    for start in tl.range(0, WIDTH, BLOCK):
        columns = start + tl.arange(0, BLOCK)
        values = tl.load(source + columns, mask=columns < WIDTH, other=float("-inf"))
        is_number = values == values
        has_nan = tl.maximum(has_nan, tl.max((values != values).to(tl.int32), 0))
        values = tl.where(is_number, values, float("-inf"))
        peak = tl.max(values, 0)
        first = tl.min(tl.where(values == peak, columns, WIDTH), 0)
        token = tl.where(peak > best, first, token)
        best = tl.maximum(best, peak)
    return best, token, has_nan


@triton.jit
def _weights(values: tl.tensor, best: tl.tensor, rate: tl.tensor) -> tl.tensor:
    """Return how likely logits are, beside the largest; 0 for NaN."""
    return tl.where(values == values, tl.exp2((values - best) * rate), 0.0)


@triton.jit
def _draw(
    source: tl.tensor, best: tl.tensor, rate: tl.tensor, noise: tl.tensor, WIDTH: tl.constexpr, BLOCK: tl.constexpr
) -> tl.tensor:
    """Return the token at which the running sum of all weights passes noise times the total, or is complete."""
    total = tl.full((), 0.0, tl.float32)
    for start in tl.range(0, WIDTH, BLOCK):
        columns = start + tl.arange(0, BLOCK)
        total += tl.sum(_weights(tl.load(source + columns, mask=columns < WIDTH, other=float("-inf")), best, rate), 0)
    target = noise * total
    before = tl.full((), 0.0, tl.float32)
    token = tl.full((), -1, tl.int32)
    last = tl.full((), 0, tl.int32)
    for start in tl.range(0, WIDTH, BLOCK):
        columns = start + tl.arange(0, BLOCK)
        weights = _weights(tl.load(source + columns, mask=columns < WIDTH, other=float("-inf")), best, rate)
        passed = tl.min(tl.where(before + tl.cumsum(weights, 0) > target, columns, WIDTH), 0)
        token = tl.where((token < 0) & (passed < WIDTH), passed, token)
        last = tl.maximum(last, tl.max(tl.where(weights > 0, columns, 0), 0))
        before += tl.sum(weights, 0)
    return tl.where(token < 0, last, token)


@triton.jit
def _gather(
    source: tl.tensor,
    candidates: tl.tensor,
    candidate_ids: tl.tensor,
    best: tl.tensor,
    heat: tl.tensor,
    rate: tl.tensor,
    WIDTH: tl.constexpr,
    BLOCK: tl.constexpr,
) -> tuple[tl.tensor, tl.tensor, tl.tensor]:
    """Return the sum of all weights, that of the candidates, and their number; store the first BLOCK of them."""
    mass = tl.full((), 0.0, tl.float32)
    found = tl.full((), 0.0, tl.float32)
    number = tl.full((), 0, tl.int32)
    for start in tl.range(0, WIDTH, BLOCK):
        columns = start + tl.arange(0, BLOCK)
        values = tl.load(source + columns, mask=columns < WIDTH, other=float("-inf"))
        weights = _weights(values, best, rate)
        is_candidate = values >= best - _REACH * heat
        places = number + tl.cumsum(is_candidate.to(tl.int32), 0) - 1
        is_stored = is_candidate & (places < BLOCK)
        tl.store(candidates + places, values, mask=is_stored)
        tl.store(candidate_ids + places, columns, mask=is_stored)
        mass += tl.sum(weights, 0)
        found += tl.sum(tl.where(is_candidate, weights, 0.0), 0)
        number += tl.sum(is_candidate.to(tl.int32), 0)
    tl.debug_barrier()  # other threads of the program read what these have stored
    return mass, found, number


@triton.jit
def _draw_limited(
    source: tl.tensor,
    names: tl.tensor,
    length: tl.tensor,
    best: tl.tensor,
    heat: tl.tensor,
    rate: tl.tensor,
    top_k: tl.tensor,
    top_p: tl.tensor,
    min_p: tl.tensor,
    noise: tl.tensor,
    NAMED: tl.constexpr,
    BLOCK: tl.constexpr,
) -> tl.tensor:
    """Return the token that is drawn of what min-p, top-k and top-p leave.

    `source` holds `length` logits, of the tokens that `names` says if they are NAMED, else of the first ones.
    """
    floor = best - _VANISHED * heat
    if min_p > 0.0:
        floor = tl.maximum(floor, best + heat * tl.log(min_p))
    low = _at_least(source, length, floor, BLOCK)
    # Of the values that end a part, so many are in it: `kept`, the first of them.
    end = _search(source, length, low, best, best, rate, top_k.to(tl.float32), True, False, BLOCK)
    num_above, above, number = _beyond(source, length, end, best, rate, BLOCK)
    kept = tl.minimum(top_k - num_above.to(tl.int32), number.to(tl.int32)).to(tl.float32)
    mass = above + kept * _weights(end, best, rate)
    if top_p < 1.0:
        goal = top_p * mass
        top_p_end = _search(source, length, end, best, best, rate, goal, False, False, BLOCK)
        _, above, number = _beyond(source, length, top_p_end, best, rate, BLOCK)
        most = tl.where(top_p_end > end, number, kept)
        wanted = tl.ceil((goal - above) / _weights(top_p_end, best, rate))
        kept = tl.maximum(tl.minimum(wanted, most), 1.0)
        end = top_p_end
        mass = above + kept * _weights(end, best, rate)
    target = noise * mass
    drawn = _search(source, length, end, best, best, rate, target, False, True, BLOCK)
    _, above, number = _beyond(source, length, drawn, best, rate, BLOCK)
    most = tl.where(drawn > end, number, kept)
    index = tl.minimum(tl.floor((target - above) / _weights(drawn, best, rate)), most - 1.0)
    return _name(source, names, length, drawn, tl.maximum(index, 0.0).to(tl.int32), NAMED, BLOCK)


@triton.jit
def _search(
    source: tl.tensor,
    length: tl.tensor,
    low: tl.tensor,
    high: tl.tensor,
    best: tl.tensor,
    rate: tl.tensor,
    goal: tl.tensor,
    COUNTS: tl.constexpr,
    STRICT: tl.constexpr,
    BLOCK: tl.constexpr,
) -> tl.tensor:
    """Return the largest logit, from `low` to `high`, with which those above reach (STRICT: pass) the goal; else `low`.

    COUNTS: by their number, else by the sum of their weights. Both `low` and `high` are among the logits.
    """
    while low < high:
        middle = low + (high - low) * 0.5
        middle = tl.where(middle > low, middle, high)
        reached = tl.full((), 0.0, tl.float32)
        next_above = high
        next_below = low
        for start in tl.range(0, length, BLOCK):
            index = start + tl.arange(0, BLOCK)
            values = tl.load(source + index, mask=index < length, other=float("-inf"))
            is_above = values >= middle
            measure = is_above.to(tl.float32) if COUNTS else tl.where(is_above, _weights(values, best, rate), 0.0)
            reached += tl.sum(measure, 0)
            next_above = tl.minimum(next_above, tl.min(tl.where(is_above, values, high), 0))
            next_below = tl.maximum(next_below, tl.max(tl.where(values < middle, values, low), 0))
        is_reached = reached > goal if STRICT else reached >= goal
        low = tl.where(is_reached, next_above, low)
        high = tl.where(is_reached, high, next_below)
    return low


@triton.jit
def _at_least(source: tl.tensor, length: tl.tensor, floor: tl.tensor, BLOCK: tl.constexpr) -> tl.tensor:
    """Return the smallest logit from `floor` on."""
    low = tl.full((), float("inf"), tl.float32)
    for start in tl.range(0, length, BLOCK):
        index = start + tl.arange(0, BLOCK)
        values = tl.load(source + index, mask=index < length, other=float("-inf"))
        low = tl.minimum(low, tl.min(tl.where(values >= floor, values, float("inf")), 0))
    return low


@triton.jit
def _beyond(
    source: tl.tensor, length: tl.tensor, value: tl.tensor, best: tl.tensor, rate: tl.tensor, BLOCK: tl.constexpr
) -> tuple[tl.tensor, tl.tensor, tl.tensor]:
    """Return how many logits are larger, the sum of their weights, and how many are equal."""
    num_above = tl.full((), 0.0, tl.float32)
    above = tl.full((), 0.0, tl.float32)
    number = tl.full((), 0.0, tl.float32)
    for start in tl.range(0, length, BLOCK):
        index = start + tl.arange(0, BLOCK)
        values = tl.load(source + index, mask=index < length, other=float("-inf"))
        is_above = values > value
        num_above += tl.sum(is_above.to(tl.float32), 0)
        above += tl.sum(tl.where(is_above, _weights(values, best, rate), 0.0), 0)
        number += tl.sum((values == value).to(tl.float32), 0)
    return num_above, above, number


@triton.jit
def _name(
    source: tl.tensor,
    names: tl.tensor,
    length: tl.tensor,
    value: tl.tensor,
    index: tl.tensor,
    NAMED: tl.constexpr,
    BLOCK: tl.constexpr,
) -> tl.tensor:
    """Return the token that is number `index` of those with this logit."""
    before = tl.full((), 0, tl.int32)
    token = tl.full((), 0, tl.int32)
    for start in tl.range(0, length, BLOCK):
        places = start + tl.arange(0, BLOCK)
        is_equal = tl.load(source + places, mask=places < length, other=float("-inf")) == value
        rank = before + tl.cumsum(is_equal.to(tl.int32), 0) - 1
        place = tl.max(tl.where(is_equal & (rank == index), places, -1), 0)
        token = tl.where(place >= 0, place, token)
        before += tl.sum(is_equal.to(tl.int32), 0)
    if NAMED:
        token = tl.load(names + token)
    return token


@triton.jit
def _noise(stream: tl.tensor, position: tl.tensor) -> tl.tensor:
    """Return reference.py's noise_of, in float32."""
    state = (stream + position).to(tl.uint64) + tl.full((), 0x9E3779B97F4A7C15, tl.uint64)
    state = (state ^ (state >> 30)) * tl.full((), 0xBF58476D1CE4E5B9, tl.uint64)
    state = (state ^ (state >> 27)) * tl.full((), 0x94D049BB133111EB, tl.uint64)
    state = (state ^ (state >> 31)) >> 40
    return state.to(tl.float32) / 16777216.0
