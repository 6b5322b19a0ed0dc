from typing import Any

import pytest

from kvasir_protocol.errors import InvalidRequest
from kvasir_protocol.request import SamplingParams
from kvasir_workers.sampling_limits import check_token_ids

EOS = frozenset({0})


@pytest.mark.parametrize(
    ("options", "field"),
    [
        ({"logit_bias": {16: 1.0}}, "logit_bias"),
        ({"allowed_token_ids": (3, 16)}, "allowed_token_ids"),
        ({"allowed_token_ids": (-1,)}, "allowed_token_ids"),
        ({"bad_word_token_ids": ((1, 16),)}, "bad_words"),
        ({"bad_words": ("still text",)}, "bad_words"),
        ({"allowed_token_ids": (0, 5), "stop_token_ids": (5,), "min_tokens": 2}, "allowed_token_ids"),
    ],
)
def test_lists_that_this_model_cannot_serve_are_refused(options: dict[str, Any], field: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        check_token_ids(SamplingParams(**options), 16, EOS)
    assert caught.value.field == field


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"logit_bias": {15: 1.0}, "allowed_token_ids": (0, 15), "bad_word_token_ids": ((15, 2),)},
        {"allowed_token_ids": (0, 5), "min_tokens": 2},
        {"allowed_token_ids": (0,), "ignore_eos": True, "min_tokens": 2},
    ],
)
def test_lists_that_it_can_serve_pass(options: dict[str, Any]) -> None:
    check_token_ids(SamplingParams(**options), 16, EOS)
