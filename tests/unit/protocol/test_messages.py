"""What messages refuse to say."""

import dataclasses
import math

import pytest

from kvasir_protocol.errors import InvalidRequest
from kvasir_protocol.ids import Generation, PageIndex, RequestId
from kvasir_protocol.messages import MAX_DEADLINE_S, HandoverTicket, Reserve, Submit
from kvasir_protocol.request import GenerationRequest, SamplingParams

REQUEST = GenerationRequest(request_id=RequestId("r"), prompt_token_ids=(1,), sampling=SamplingParams())
TICKET = HandoverTicket(
    endpoint="tcp://127.0.0.1:1",
    generation=Generation(1),
    first_page=0,
    page_indices=(PageIndex(3),),
    segments=(),
    deadline_s=1.0,
)
NEVER = [math.nan, math.inf, -1.0, 0.0, MAX_DEADLINE_S * 1.01]


@pytest.mark.parametrize("deadline_s", NEVER)
def test_reservation_has_a_deadline_that_comes(deadline_s: float) -> None:
    with pytest.raises(InvalidRequest, match="deadline"):
        Reserve(request=REQUEST, deadline_s=deadline_s)


@pytest.mark.parametrize("deadline_s", NEVER)
def test_ticket_is_awaited_until_a_time_that_comes(deadline_s: float) -> None:
    with pytest.raises(InvalidRequest, match="deadline"):
        Submit(request=REQUEST, ticket_within_s=deadline_s)


@pytest.mark.parametrize("deadline_s", NEVER)
def test_ticket_has_a_deadline_that_comes(deadline_s: float) -> None:
    with pytest.raises(InvalidRequest, match="deadline"):
        dataclasses.replace(TICKET, deadline_s=deadline_s)


@pytest.mark.parametrize("change", [{"first_page": -1}, {"page_indices": (2, -1)}])
def test_ticket_counts_pages_from_zero(change: dict[str, object]) -> None:
    with pytest.raises(InvalidRequest, match="counted from 0"):
        dataclasses.replace(TICKET, **change)  # type: ignore[arg-type]
