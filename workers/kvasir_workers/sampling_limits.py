"""Whether a request's lists of tokens make sense for this model."""

from collections.abc import Iterable

from kvasir_protocol.errors import InvalidRequest
from kvasir_protocol.request import SamplingParams


def check_token_ids(sampling: SamplingParams, vocab_size: int, eos_token_ids: frozenset[int]) -> None:
    """Raises InvalidRequest for ids outside the vocabulary, and for text that should be ids by now."""
    if sampling.bad_words:
        raise InvalidRequest("bad_words are to be made token ids before a request reaches an engine", "bad_words")
    words = (token_id for word in sampling.bad_word_token_ids for token_id in word)
    _check("logit_bias", (entry.token_id for entry in sampling.logit_bias), vocab_size)
    _check("allowed_token_ids", sampling.allowed_token_ids, vocab_size)
    _check("bad_words", words, vocab_size)
    ends = {*sampling.stop_token_ids} | (set() if sampling.ignore_eos else eos_token_ids)
    if sampling.min_tokens and sampling.allowed_token_ids and ends.issuperset(sampling.allowed_token_ids):
        raise InvalidRequest(
            "allowed_token_ids has only tokens that end the answer, which min_tokens forbids", "allowed_token_ids"
        )


def _check(field: str, token_ids: Iterable[int], vocab_size: int) -> None:
    for token_id in token_ids:
        if not 0 <= token_id < vocab_size:
            raise InvalidRequest(f"{field}: token id {token_id} is not in the vocabulary of {vocab_size}", field)
