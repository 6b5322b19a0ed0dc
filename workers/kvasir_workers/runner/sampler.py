"""From logits to tokens, for all rows of a step at once.

The noise of a token is a pure function of (seed, choice, position): a request gets the same tokens in any batch, after
preemption, on any replica. A row's arithmetic, too, depends on that row alone.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from kvasir_protocol.events import TokenLogprobs
from kvasir_protocol.request import SamplingParams
from kvasir_workers.runner.grammar_mask import restrict_to_grammars
from kvasir_workers.sequence import Sequence as TokenSequence


@dataclass(frozen=True, slots=True)
class SampledToken:
    """One row's token; logprobs if the request asked for them."""

    token_id: int
    logprobs: TokenLogprobs | None


def sample(logits: Tensor, sequences: Sequence[TokenSequence], eos_token_ids: frozenset[int]) -> list[SampledToken]:
    """The next token of each sequence. logits: [R, V] float32, changed in place; row i belongs to sequences[i]."""
    raw_logprobs = _raw_logprobs(logits, sequences)
    restrict_to_grammars(logits, sequences, eos_token_ids)
    _forbid_early_stops(logits, sequences, eos_token_ids)
    _apply_penalties(logits, sequences)
    token_ids = _choose(logits, sequences)
    return [
        SampledToken(token_id, _logprobs_of(token_id, raw_logprobs.get(row), sequences[row]))
        for row, token_id in enumerate(token_ids)
    ]


def _rows(flags: Sequence[bool]) -> list[int]:
    return [row for row, flag in enumerate(flags) if flag]


# Logprobs


def _raw_logprobs(logits: Tensor, sequences: Sequence[TokenSequence]) -> dict[int, Tensor]:
    """Log-probabilities of the model itself, before penalties and temperature, for the rows that want them."""
    rows = _rows([sequence.request.sampling.logprobs is not None for sequence in sequences])
    if not rows:
        return {}
    return dict(zip(rows, torch.log_softmax(logits[rows], dim=-1), strict=True))


def _logprobs_of(token_id: int, logprobs: Tensor | None, sequence: TokenSequence) -> TokenLogprobs | None:
    if logprobs is None:
        return None
    num_top = sequence.request.sampling.logprobs or 0
    values, ids = logprobs.topk(min(num_top, logprobs.shape[-1]))
    return TokenLogprobs(
        logprob=float(logprobs[token_id]), top_token_ids=tuple(ids.tolist()), top_logprobs=tuple(values.tolist())
    )


# What changes the logits


def _forbid_early_stops(logits: Tensor, sequences: Sequence[TokenSequence], eos_token_ids: frozenset[int]) -> None:
    for row, sequence in enumerate(sequences):
        sampling = sequence.request.sampling
        if sequence.num_generated < sampling.min_tokens and sequence.grammar is None:
            logits[row, [*(set() if sampling.ignore_eos else eos_token_ids), *sampling.stop_token_ids]] = -torch.inf


def _apply_penalties(logits: Tensor, sequences: Sequence[TokenSequence]) -> None:
    """Repetition (Keskar et al., 2019) over prompt and answer; presence and frequency (OpenAI) over the answer."""
    for row, sequence in enumerate(sequences):
        sampling = sequence.request.sampling
        if sampling.repetition_penalty != 1.0:
            seen = torch.tensor(sorted(set(sequence.token_ids)), device=logits.device)
            values = logits[row, seen]
            penalty = sampling.repetition_penalty
            logits[row, seen] = torch.where(values > 0, values / penalty, values * penalty)
        if sampling.presence_penalty or sampling.frequency_penalty:
            answer = torch.tensor(sequence.token_ids[sequence.num_prompt_tokens :], dtype=torch.int64)
            counts = torch.bincount(answer, minlength=logits.shape[-1]).to(logits)
            logits[row] -= sampling.frequency_penalty * counts + sampling.presence_penalty * (counts > 0)


# The choice


def _choose(logits: Tensor, sequences: Sequence[TokenSequence]) -> list[int]:
    params = [sequence.request.sampling for sequence in sequences]
    token_ids = logits.argmax(dim=-1)
    plain = _rows([p.temperature > 0 and not (p.top_k > 0 or p.top_p < 1 or p.min_p > 0) for p in params])
    filtered = _rows([p.temperature > 0 and (p.top_k > 0 or p.top_p < 1 or p.min_p > 0) for p in params])
    if not plain and not filtered:
        return [int(token_id) for token_id in token_ids.tolist()]
    temperatures = torch.tensor([max(p.temperature, 1e-6) for p in params], device=logits.device)
    scaled = logits / temperatures[:, None]
    noise = uniform_noise(sequences).to(logits.device)
    if plain:
        token_ids[plain] = _invert(torch.softmax(scaled[plain], dim=-1), noise[plain])
    if filtered:
        probabilities, order = torch.softmax(scaled[filtered], dim=-1).sort(dim=-1, descending=True, stable=True)
        kept = _filter(probabilities, [params[row] for row in filtered])
        token_ids[filtered] = order.gather(1, _invert(kept, noise[filtered])[:, None])[:, 0]
    return [int(token_id) for token_id in token_ids.tolist()]


def _filter(probabilities: Tensor, params: Sequence[SamplingParams]) -> Tensor:
    """Zero what min-p, top-k and top-p exclude, in this order. probabilities: [R, V], each row descending."""
    min_p = torch.tensor([p.min_p for p in params], device=probabilities.device)
    top_k = torch.tensor([p.top_k if p.top_k > 0 else 2**31 for p in params], device=probabilities.device)
    # The running sum may round up to 1 before the last token: 1 switches the filter off all the same.
    top_p = torch.tensor([p.top_p if p.top_p < 1 else torch.inf for p in params], device=probabilities.device)
    rank = torch.arange(probabilities.shape[-1], device=probabilities.device)
    excluded = (probabilities < min_p[:, None] * probabilities[:, :1]) | (rank >= top_k[:, None])
    kept = probabilities.masked_fill(excluded, 0)
    kept = kept / kept.sum(dim=-1, keepdim=True)
    mass_before = kept.cumsum(dim=-1) - kept
    return kept.masked_fill((mass_before >= top_p[:, None]) & (rank > 0), 0)


def _invert(weights: Tensor, noise: Tensor) -> Tensor:
    """The index at which the running sum of a row passes noise x its total. weights: [R, V], noise: [R] -> [R]."""
    sums = weights.cumsum(dim=-1)
    index = torch.searchsorted(sums, noise[:, None] * sums[:, -1:], right=True)[:, 0]
    last = weights.shape[-1] - 1 - (weights > 0).flip(-1).to(torch.int8).argmax(dim=-1)
    return torch.minimum(index, last)


_GOLDEN = np.uint64(0x9E3779B97F4A7C15)


def uniform_noise(sequences: Sequence[TokenSequence]) -> Tensor:
    """[R] float32 in [0, 1): one number per sequence, from its seed, choice and position alone."""
    seed = np.array([sequence.request.seed for sequence in sequences], dtype=np.uint64)
    choice = np.array([sequence.request.choice_index for sequence in sequences], dtype=np.uint64)
    position = np.array([sequence.num_generated for sequence in sequences], dtype=np.uint64)
    with np.errstate(over="ignore"):
        state = _mix(_mix(_mix(seed) + choice) + position)
    return torch.from_numpy((state >> np.uint64(40)).astype(np.float32) / np.float32(2**24))


def _mix(state: "np.ndarray[tuple[int], np.dtype[np.uint64]]") -> "np.ndarray[tuple[int], np.dtype[np.uint64]]":
    """The output function of SplitMix64 (Steele, Lea and Flood, 2014) after one increment."""
    state = state + _GOLDEN
    state = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    state = (state ^ (state >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return state ^ (state >> np.uint64(31))
