"""Requests as the router makes them."""

from dataclasses import replace

from kvasir_protocol.ids import RequestId
from kvasir_protocol.request import GenerationRequest, SamplingParams


def make_request(max_tokens: int = 5, sampling: SamplingParams | None = None) -> GenerationRequest:
    """Request "r" with a prompt of three tokens and seed 0."""
    return GenerationRequest(
        request_id=RequestId("r"),
        prompt_token_ids=(10, 11, 12),
        sampling=replace(sampling or SamplingParams(), max_tokens=max_tokens, seed=0),
    )
