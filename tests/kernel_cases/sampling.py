"""Sampling, and what is done to logits before."""

from functools import partial

import torch
from torch import Tensor

from kvasir_kernels.mask_logits import reference as reference_mask
from kvasir_kernels.penalise import reference as reference_penalties
from kvasir_kernels.penalise.reference import SeenTable, SeenTokens
from kvasir_kernels.sample_tokens.reference import SamplingRules, sample_tokens
from tests.kernel_cases.checking import Case, random

NO_TOP_K = 2**31 - 1

# temperature, top-k, top-p, min-p of each row.
Rule = tuple[float, int, float, float]

UNLIMITED = (1.0, NO_TOP_K, float("inf"), 0.0)


def _rules(rules: list[Rule], device: torch.device, first_position: int = 0) -> SamplingRules:
    temperature, top_k, top_p, min_p = zip(*rules, strict=True)
    streams = torch.randint(-(2**63), 2**63 - 1, (len(rules),), generator=torch.Generator().manual_seed(5))
    return SamplingRules(
        streams.to(device),
        (torch.arange(len(rules)) * 7 + first_position).to(device),
        torch.tensor(temperature, device=device),
        torch.tensor(top_k, dtype=torch.int32, device=device),
        torch.tensor(top_p, device=device),
        torch.tensor(min_p, device=device),
    )


def _check_sampling(logits: Tensor, rules: list[Rule], device: torch.device) -> None:
    """The same tokens as in float64; the noise of these cases does not fall within rounding of a token's edge."""
    from kvasir_kernels.sample_tokens import kernel

    for first_position in (0, 1000):
        on_device, placed = logits.to(device), _rules(rules, device, first_position)
        token_ids, chosen = kernel.sample_tokens(on_device, placed)
        expected_ids, expected = sample_tokens(on_device, placed)
        assert token_ids.tolist() == expected_ids.tolist()
        torch.testing.assert_close(chosen, expected, atol=0, rtol=0, equal_nan=True)


def _logits(width: int, num_rows: int, *, spread: float = 3.0, is_rounded: bool = False) -> Tensor:
    logits = spread * random(torch.device("cpu"), torch.float32, num_rows, width)
    return logits.bfloat16().float().round(decimals=1) if is_rounded else logits


LIMITED: list[Rule] = [
    (0.7, 50, float("inf"), 0.0),
    (1.0, NO_TOP_K, 0.9, 0.0),
    (1.3, NO_TOP_K, float("inf"), 0.05),
    (1.0, 20, 0.8, 0.01),
    (0.2, 1, float("inf"), 0.0),
    (2.0, NO_TOP_K, 1e-6, 0.0),
    (0.0, 5, 0.5, 0.1),
    UNLIMITED,
]


def _check_odd_rows(device: torch.device) -> None:
    """NaN, infinities, all forbidden, one allowed, all equal."""
    logits = torch.full((6, 70), -torch.inf)
    logits[0] = torch.arange(70) / 20
    logits[0, 3] = torch.nan
    logits[2, 69] = -3.0
    logits[3], logits[4], logits[5] = 0.0, 1e30, -1e30
    for rule in (UNLIMITED, (1.0, 7, 0.5, 0.0), (0.0, NO_TOP_K, float("inf"), 0.0)):
        _check_sampling(logits, [rule] * 6, device)


def _check_mask(width: int, rows: tuple[int, ...], device: torch.device) -> None:
    from kvasir_kernels.mask_logits.kernel import mask_logits

    logits = random(device, torch.float32, 6, width)
    logits[rows[0], 0] = torch.nan
    words = torch.randint(-(2**31), 2**31, (len(rows), -(-width // 32)), generator=torch.Generator().manual_seed(3))
    actual, expected = logits.clone(), logits.clone()
    mask_logits(actual, rows, words.int())
    reference_mask.mask_logits(expected, rows, words.int())
    torch.testing.assert_close(actual, expected, atol=0, rtol=0, equal_nan=True)


def _check_penalties(num_seen: int, device: torch.device) -> None:
    from kvasir_kernels.penalise.kernel import penalise

    logits = random(device, torch.float32, 3, 5000)
    order = torch.randperm(3 * 5000, generator=torch.Generator().manual_seed(1))[:num_seen]
    seen = SeenTokens(
        rows=(order // 5000).to(device),
        token_ids=(order % 5000).to(device),
        counts=(order % 4).float().to(device),
        repetition=torch.tensor([1.0, 1.3, 0.8], device=device),
        presence=torch.tensor([0.0, 0.5, -0.5], device=device),
        frequency=torch.tensor([0.1, 0.0, 0.2], device=device),
    )
    actual, expected = logits.clone(), logits.clone()
    penalise(actual, seen)
    reference_penalties.penalise(expected, seen)
    torch.testing.assert_close(actual, expected, atol=1e-6, rtol=1e-6)


def _check_table_of_seen(width: int, device: torch.device) -> None:
    from kvasir_kernels.penalise.kernel import penalise

    generator = torch.Generator().manual_seed(width)
    seen = SeenTable(
        table=torch.randint(0, 7, (3, width), dtype=torch.int32, generator=generator).sub(3).clamp(min=0).to(device),
        places=torch.tensor([2, -1, 0, 1], device=device),
        repetition=torch.tensor([1.3, 2.0, 0.8, 1.0], device=device),
        presence=torch.tensor([0.5, 1.0, 0.0, -0.5], device=device),
        frequency=torch.tensor([0.0, 1.0, 0.2, 0.1], device=device),
    )
    logits = random(device, torch.float32, 4, width)
    logits[0, 0], logits[2, 0] = torch.nan, -torch.inf
    actual, expected = logits.clone(), logits.clone()
    penalise(actual, seen)
    reference_penalties.penalise(expected, seen)
    torch.testing.assert_close(actual, expected, atol=1e-6, rtol=1e-6, equal_nan=True)
    assert torch.equal(actual[1], logits[1])


def cases() -> dict[str, Case]:
    found: dict[str, Case] = {"sample_tokens odd rows": _check_odd_rows}
    for width in (1, 33, 4096, 9001):
        found[f"sample_tokens of {width}"] = partial(_check_sampling, _logits(width, len(LIMITED)), LIMITED)
    # Many equal logits, at the ends of parts, too.
    found["sample_tokens equal logits"] = partial(_check_sampling, _logits(300, len(LIMITED), is_rounded=True), LIMITED)
    # More candidates than there is room for: the whole row is searched.
    found["sample_tokens flat"] = partial(_check_sampling, _logits(9000, len(LIMITED), spread=0.5), LIMITED)
    for width, rows in [(1, (0,)), (32, (1, 2)), (100, (0, 5)), (3000, (0, 1, 2, 3, 4, 5))]:
        found[f"mask_logits {width} {rows}"] = partial(_check_mask, width, rows)
    for num_seen in (1, 700):
        found[f"penalise {num_seen}"] = partial(_check_penalties, num_seen)
    for width in (1, 5000):
        found[f"penalise from a table of {width}"] = partial(_check_table_of_seen, width)
    return found
