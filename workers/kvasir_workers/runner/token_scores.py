"""Log-probabilities as a caller sees them."""

from collections.abc import Sequence

from torch import Tensor

from kvasir_protocol.events import TokenLogprobs
from kvasir_protocol.request import MAX_LOGPROBS


def score_tokens(logprobs: Tensor, token_ids: Tensor, num_top: Sequence[int]) -> list[TokenLogprobs]:
    """Each row's token and its num_top likeliest ones. logprobs: [R, V], token_ids: [R]."""
    chosen = logprobs.gather(-1, token_ids[:, None])[:, 0].tolist()
    if not any(num_top):
        return [TokenLogprobs(logprob=logprob) for logprob in chosen]
    # Always as many, so that the order of equal tokens does not depend on what the other rows ask for.
    top = logprobs.topk(min(MAX_LOGPROBS, logprobs.shape[-1]), dim=-1)
    return [
        TokenLogprobs(logprob=logprob, top_token_ids=tuple(ids[:num]), top_logprobs=tuple(values[:num]))
        for logprob, ids, values, num in zip(chosen, top.indices.tolist(), top.values.tolist(), num_top, strict=True)
    ]
