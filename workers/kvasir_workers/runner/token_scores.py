"""Log-probabilities as a caller sees them."""

from collections.abc import Sequence

from torch import Tensor

from kvasir_protocol.events import TokenLogprobs
from kvasir_protocol.request import MAX_LOGPROBS

_USUAL_LOGPROBS = 20
"""What nearly all ask for at most: OpenAI's limit, and ours at the HTTP door."""


def score_tokens(logprobs: Tensor, token_ids: Tensor, num_top: Sequence[int]) -> list[TokenLogprobs]:
    """Each row's token and its num_top likeliest ones. logprobs: [R, V], token_ids: [R]. Waits for the device."""
    return read_scores(measure_scores(logprobs, token_ids, num_top), num_top)


def measure_scores(logprobs: Tensor, token_ids: Tensor, num_top: Sequence[int]) -> list[Tensor]:
    """What read_scores reads, where the log-probabilities are."""
    tensors = [logprobs.gather(-1, token_ids[:, None])[:, 0]]
    for most in _depths(num_top):
        top = logprobs.topk(min(most, logprobs.shape[-1]), dim=-1)
        tensors += [top.indices, top.values]
    return tensors


def read_scores(tensors: Sequence[Tensor], num_top: Sequence[int]) -> list[TokenLogprobs]:
    """What measure_scores found for these rows, on the host now."""
    chosen, *tops = (tensor.tolist() for tensor in tensors)
    found = dict(zip(_depths(num_top), zip(tops[::2], tops[1::2], strict=True), strict=True))
    scores = []
    for row, (logprob, num) in enumerate(zip(chosen, num_top, strict=True)):
        if not num:
            scores.append(TokenLogprobs(logprob=logprob))
            continue
        ids, values = (column[row][:num] for column in found[_depth(num)])
        scores.append(TokenLogprobs(logprob=logprob, top_token_ids=tuple(ids), top_logprobs=tuple(values)))
    return scores


def _depths(num_top: Sequence[int]) -> list[int]:
    """How many of the likeliest tokens are looked for, at most twice."""
    return sorted({_depth(num) for num in num_top if num})


def _depth(num: int) -> int:
    """Always as many, so that the order of equal tokens does not depend on what the other rows ask for."""
    return _USUAL_LOGPROBS if num <= _USUAL_LOGPROBS else MAX_LOGPROBS
