"""Log-probabilities as a caller sees them."""

from collections.abc import Sequence

from torch import Tensor

from kvasir_protocol.events import TokenLogprobs
from kvasir_protocol.request import MAX_LOGPROBS

_USUAL_LOGPROBS = 20
"""What nearly all ask for at most: OpenAI's limit, and ours at the HTTP door."""


def score_tokens(logprobs: Tensor, token_ids: Tensor, num_top: Sequence[int]) -> list[TokenLogprobs]:
    """Each row's token and its num_top likeliest ones. logprobs: [R, V], token_ids: [R]."""
    chosen = logprobs.gather(-1, token_ids[:, None])[:, 0].tolist()
    if not any(num_top):
        return [TokenLogprobs(logprob=logprob) for logprob in chosen]
    scores: dict[int, TokenLogprobs] = {}
    few = [row for row, num in enumerate(num_top) if num <= _USUAL_LOGPROBS]
    many = [row for row, num in enumerate(num_top) if num > _USUAL_LOGPROBS]
    for rows, most in ((few, _USUAL_LOGPROBS), (many, MAX_LOGPROBS)):
        # Always as many, so that the order of equal tokens does not depend on what the other rows ask for.
        top = logprobs[rows].topk(min(most, logprobs.shape[-1]), dim=-1)
        for row, ids, values in zip(rows, top.indices.tolist(), top.values.tolist(), strict=True):
            num = num_top[row]
            scores[row] = TokenLogprobs(
                logprob=chosen[row], top_token_ids=tuple(ids[:num]), top_logprobs=tuple(values[:num])
            )
    return [scores[row] for row in range(len(num_top))]
