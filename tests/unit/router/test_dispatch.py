import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import replace

import pytest

from kvasir_protocol.errors import InvalidRequest, ServiceUnavailable, StreamLost
from kvasir_protocol.events import TokenOutput
from kvasir_protocol.ids import RequestId
from kvasir_protocol.messages import Abort, HandOver, Ping, Rejected, Reserve, Submit
from kvasir_protocol.metrics import HANDOVER_FALLBACKS, STREAMS_REPLAYED
from kvasir_protocol.view import Role
from tests.fakes.replica import DEADLINE_S, FakeReplica
from tests.fakes.requests import make_request
from tests.fakes.serving import QUICK, SECRET, Dispatching, dispatching

pytestmark = pytest.mark.anyio

ANSWER = tuple(range(100, 110))
FULL = make_request(max_tokens=len(ANSWER))
BUSY = Rejected(request_id=RequestId(""), message="no pages left", is_invalid=False)


def fake(name: str) -> FakeReplica:
    role: Role = name.partition("-")[0]  # type: ignore[assignment]
    return FakeReplica(name, role, SECRET, answer=ANSWER)


@pytest.fixture
def prefill() -> FakeReplica:
    return fake("prefill-0")


@pytest.fixture
def decode() -> FakeReplica:
    return fake("decode-0")


@pytest.fixture
def mixed() -> FakeReplica:
    return fake("mixed-0")


async def answer(running: Dispatching) -> tuple[int, ...]:
    """All tokens of FULL, checked to come once each and to end once."""
    tokens: list[int] = []
    finish_reasons = []
    async with asyncio.timeout(DEADLINE_S), aclosing(running.dispatcher.stream(FULL)) as outputs:
        async for output in outputs:
            assert output.first_index == len(tokens)
            tokens += output.token_ids
            finish_reasons.append(output.finish_reason)
    assert finish_reasons[-1] in ("stop", "length")
    assert set(finish_reasons[:-1]) <= {None}
    return tuple(tokens)


async def all_let_go(*replicas: FakeReplica) -> None:
    for replica in replicas:
        await replica.until(lambda replica: not replica.held)


async def test_mixed_replica_serves_alone(mixed: FakeReplica) -> None:
    async with dispatching(mixed) as running:
        assert await answer(running) == ANSWER
        assert mixed.got(Reserve) == []


async def test_first_token_comes_from_prefill_and_the_rest_from_decode(
    prefill: FakeReplica, decode: FakeReplica
) -> None:
    async with dispatching(prefill, decode) as running:
        assert await answer(running) == ANSWER
        (reserve,), (submit,) = decode.got(Reserve), prefill.got(Submit)
        (handover,) = prefill.got(HandOver)
        assert (handover.request_id, handover.ticket.endpoint) == (submit.request.request_id, decode.endpoint)
        assert submit.ticket_within_s == QUICK.handover_s
        assert reserve.request == submit.request
        assert reserve.deadline_s == QUICK.handover_s
        assert decode.got(Submit) == []
        assert running.count(HANDOVER_FALLBACKS) == 0


async def test_decodes_tokens_may_overtake_prefills(prefill: FakeReplica, decode: FakeReplica) -> None:
    prefill.faults.hands_over_late = True
    async with dispatching(prefill, decode) as running:
        assert await answer(running) == ANSWER
        assert running.count(STREAMS_REPLAYED) == 0


async def test_answer_that_ends_at_prefill_releases_the_reservation() -> None:
    prefill = FakeReplica("prefill-0", "prefill", SECRET, answer=ANSWER[:1])
    decode = FakeReplica("decode-0", "decode", SECRET, answer=ANSWER[:1])
    async with dispatching(prefill, decode) as running:
        outputs = [output async for output in running.dispatcher.stream(make_request(max_tokens=5))]
        assert [output.finish_reason for output in outputs] == ["stop"]
        await decode.until(lambda replica: len(replica.got(Abort)) == 1)
        await all_let_go(decode)


async def test_repeated_tokens_are_dropped(prefill: FakeReplica, decode: FakeReplica) -> None:
    prefill.faults.repeat = decode.faults.repeat = True
    async with dispatching(prefill, decode) as running:
        assert await answer(running) == ANSWER


@pytest.mark.parametrize("fault", ["refused", "silent"])
async def test_decode_that_reserves_nothing_prefills_itself(
    prefill: FakeReplica, decode: FakeReplica, fault: str
) -> None:
    if fault == "refused":
        decode.faults.reserve_refusal = "no free pages"
    else:
        decode.faults.ignores_reserve = True
    async with dispatching(prefill, decode) as running:
        assert await answer(running) == ANSWER
        assert [submit.ticket_within_s for submit in decode.got(Submit)] == [None]
        assert prefill.got(HandOver) == []
        assert running.count(HANDOVER_FALLBACKS) == 1
        await prefill.until(lambda replica: len(replica.got(Abort)) == 1)
        await all_let_go(prefill, decode)


async def begun(stream: AsyncGenerator[TokenOutput, None]) -> list[int]:
    """The first token, which the prefill replica says before any pages are set aside."""
    return list((await anext(stream)).token_ids)


async def rest_of(stream: AsyncGenerator[TokenOutput, None]) -> list[int]:
    return [token_id async for output in stream for token_id in output.token_ids]


async def test_pages_may_be_set_aside_after_the_first_token(prefill: FakeReplica, decode: FakeReplica) -> None:
    decode.faults.reserves_when = asyncio.Event()
    async with dispatching(prefill, decode) as running, asyncio.timeout(DEADLINE_S):
        stream = running.dispatcher.stream(FULL)
        first = await begun(stream)
        assert prefill.got(HandOver) == []
        decode.faults.reserves_when.set()
        assert (*first, *await rest_of(stream)) == ANSWER
        assert running.count(HANDOVER_FALLBACKS) == 0


async def test_ticket_does_not_wait_for_the_client(prefill: FakeReplica, decode: FakeReplica) -> None:
    decode.faults.reserves_when = asyncio.Event()
    async with dispatching(prefill, decode) as running, asyncio.timeout(DEADLINE_S):
        stream = running.dispatcher.stream(FULL)
        first = await begun(stream)
        decode.faults.reserves_when.set()
        await prefill.until(lambda replica: bool(replica.got(HandOver)))
        assert (*first, *await rest_of(stream)) == ANSWER


async def test_refusal_after_the_first_token_repeats_nothing(prefill: FakeReplica, decode: FakeReplica) -> None:
    decode.faults.reserves_when = asyncio.Event()
    decode.faults.reserve_refusal = "no free pages"
    async with dispatching(prefill, decode) as running, asyncio.timeout(DEADLINE_S):
        stream = running.dispatcher.stream(FULL)
        first = await begun(stream)
        decode.faults.reserves_when.set()
        assert (*first, *await rest_of(stream)) == ANSWER
        assert [submit.request.emitted_token_ids for submit in decode.got(Submit)] == [ANSWER[:1]]
        await all_let_go(prefill, decode)


async def test_prefill_that_is_lost_before_pages_are_set_aside_is_not_waited_for(
    prefill: FakeReplica, decode: FakeReplica
) -> None:
    decode.faults.reserves_when = asyncio.Event()
    async with dispatching(prefill, decode, patience=replace(QUICK, reservation_s=60.0)) as running:
        stream = running.dispatcher.stream(FULL)
        first = await begun(stream)
        await prefill.stop()
        assert (*first, *await rest_of(stream)) == ANSWER
        assert running.count(HANDOVER_FALLBACKS) == 1


async def test_lost_pages_make_decode_prefill_what_the_client_has(prefill: FakeReplica, decode: FakeReplica) -> None:
    decode.faults.loses_pages = True
    async with dispatching(prefill, decode) as running:
        assert await answer(running) == ANSWER
        (submit,) = decode.got(Submit)
        # The bad news comes by another connection than the first token, and may overtake it.
        assert submit.request.emitted_token_ids in ((), ANSWER[:1])
        assert submit.request.max_tokens == FULL.max_tokens
        assert running.count(HANDOVER_FALLBACKS) == 1
        await all_let_go(prefill, decode)


@pytest.mark.parametrize("fault", ["dies", "rejects", "silent"])
async def test_decode_goes_on_alone_when_prefill_fails(prefill: FakeReplica, decode: FakeReplica, fault: str) -> None:
    match fault:
        case "dies":
            prefill.faults.die_at = 0
        case "rejects":
            prefill.faults.rejection = BUSY
        case _:
            prefill.faults.silent_at = 0
    async with dispatching(prefill, decode) as running:
        assert await answer(running) == ANSWER
        assert running.count(HANDOVER_FALLBACKS) == 1
        assert running.count(STREAMS_REPLAYED) == 0
        await all_let_go(decode)


async def test_stream_goes_on_at_another_replica_with_the_tokens_it_has() -> None:
    replicas = [fake("decode-0"), fake("decode-1")]
    replicas[0].faults.die_at = 4
    async with dispatching(*replicas) as running:
        assert await answer(running) == ANSWER
        (submit,) = replicas[1].got(Submit)
        assert submit.request.emitted_token_ids == ANSWER[:4]
        assert submit.request.request_id == "r#2"
        assert running.count(STREAMS_REPLAYED) == 1


async def test_stream_survives_the_death_of_decode_after_the_hand_over(prefill: FakeReplica) -> None:
    decodes = [fake("decode-0"), fake("decode-1")]
    decodes[0].faults.die_at = 5
    async with dispatching(prefill, *decodes) as running:
        assert await answer(running) == ANSWER
        assert running.count(STREAMS_REPLAYED) == 1


async def test_prefill_serves_whole_streams_when_the_last_decode_is_lost(
    prefill: FakeReplica, decode: FakeReplica
) -> None:
    decode.faults.die_at = 5
    async with dispatching(prefill, decode) as running:
        assert await answer(running) == ANSWER
        assert prefill.got(Submit)[-1].ticket_within_s is None
        assert prefill.got(Submit)[-1].request.emitted_token_ids == ANSWER[:5]


async def test_stream_waits_for_its_only_replica_to_come_back(mixed: FakeReplica) -> None:
    mixed.faults.die_at = 3
    async with dispatching(mixed) as running:
        stream = asyncio.create_task(answer(running))
        while running.fleet.live():
            await running.fleet.wait_for_change()
        mixed.faults.die_at = None
        await mixed.start()
        assert await stream == ANSWER


async def test_stream_is_lost_when_nobody_comes_up(mixed: FakeReplica) -> None:
    mixed.faults.die_at = 3
    async with dispatching(mixed, patience=replace(QUICK, replica_wait_s=0.2)) as running:
        with pytest.raises(StreamLost, match=r"within 0\.2 s"):
            await answer(running)


async def test_stream_that_loses_four_replicas_is_given_up() -> None:
    replicas = [fake(f"mixed-{number}") for number in range(5)]
    for replica in replicas:
        replica.faults.skip = 2
    async with dispatching(*replicas) as running:
        with pytest.raises(StreamLost, match="lost 4 times"):
            await answer(running)
        assert running.count(STREAMS_REPLAYED) == 3


@pytest.mark.parametrize("fault", ["gap", "silence"])
async def test_replica_out_of_its_mind_is_left_for_another(fault: str) -> None:
    replicas = [fake("mixed-0"), fake("mixed-1")]
    if fault == "gap":
        replicas[0].faults.skip = 4
    else:
        replicas[0].faults.silent_at = 4
    async with dispatching(*replicas, patience=replace(QUICK, max_silence_s=60)) as running:
        assert await answer(running) == ANSWER
        assert len(replicas[1].got(Submit)) == 1
        await all_let_go(*replicas)


async def test_silent_replica_is_waited_for_while_its_engine_makes_steps(mixed: FakeReplica) -> None:
    mixed.faults.pause_at = 2
    mixed.steps_by_itself = True
    num_pings_in_three_silences = round(3 * QUICK.silence_s / QUICK.ping_interval_s)
    async with dispatching(mixed, patience=replace(QUICK, max_silence_s=60)) as running:
        stream = asyncio.create_task(answer(running))
        await mixed.until(lambda replica: bool(replica.held))
        num_pings = len(mixed.got(Ping)) + num_pings_in_three_silences
        await mixed.until(lambda replica: len(replica.got(Ping)) >= num_pings)
        mixed.faults.resumed.set()
        assert await stream == ANSWER
        assert running.count(STREAMS_REPLAYED) == 0


async def test_progress_without_tokens_is_not_waited_for_without_end() -> None:
    replicas = [fake("mixed-0"), fake("mixed-1")]
    replicas[0].faults.silent_at = 2
    replicas[0].steps_by_itself = True
    async with dispatching(*replicas) as running:
        assert await answer(running) == ANSWER
        assert running.count(STREAMS_REPLAYED) == 1


async def test_fault_that_a_replica_finds_is_the_callers(mixed: FakeReplica) -> None:
    mixed.faults.rejection = replace(BUSY, message="top_k is too large", is_invalid=True, field="top_k")
    async with dispatching(mixed) as running:
        with pytest.raises(InvalidRequest, match="too large") as caught:
            await answer(running)
        assert caught.value.field == "top_k"


async def test_full_replica_is_left_for_another() -> None:
    replicas = [fake("mixed-0"), fake("mixed-1")]
    replicas[0].faults.rejection = BUSY
    async with dispatching(*replicas) as running:
        assert await answer(running) == ANSWER


@pytest.mark.parametrize("num_replicas", [1, 3])
async def test_service_is_unavailable_when_replicas_are_full(num_replicas: int) -> None:
    replicas = [fake(f"mixed-{number}") for number in range(num_replicas)]
    for replica in replicas:
        replica.faults.rejection = BUSY
    async with dispatching(*replicas) as running:
        with pytest.raises(ServiceUnavailable, match="no pages left"):
            await answer(running)
        assert sum(len(replica.got(Submit)) for replica in replicas) == min(num_replicas, 2)


async def test_deadline_is_what_former_attempts_have_left_of_it() -> None:
    replicas = [fake("mixed-0"), fake("mixed-1")]
    replicas[0].faults.rejection = BUSY
    ticks = iter((100.0, 101.0, 103.0))
    async with dispatching(*replicas) as running:
        dispatcher = replace(running.dispatcher, clock=lambda: next(ticks))
        assert [output async for output in dispatcher.stream(replace(FULL, deadline_s=5.0))]
    assert [replica.got(Submit)[0].request.deadline_s for replica in replicas] == [4.0, 2.0]


async def test_request_past_its_deadline_is_sent_to_nobody_else() -> None:
    replicas = [fake("mixed-0"), fake("mixed-1")]
    replicas[0].faults.rejection = BUSY
    ticks = iter((100.0, 101.0, 105.0))
    async with dispatching(*replicas) as running:
        dispatcher = replace(running.dispatcher, clock=lambda: next(ticks))
        with pytest.raises(ServiceUnavailable, match="no replica began the answer within 5 s"):
            await anext(dispatcher.stream(replace(FULL, deadline_s=5.0)))
        assert replicas[1].got(Submit) == []


async def test_begun_stream_has_no_deadline_elsewhere() -> None:
    replicas = [fake("mixed-0"), fake("mixed-1")]
    replicas[0].faults.die_at = 4
    async with dispatching(*replicas) as running:
        assert [output async for output in running.dispatcher.stream(replace(FULL, deadline_s=60.0))]
        assert replicas[1].got(Submit)[0].request.deadline_s is None


async def test_new_stream_does_not_wait_when_nobody_is_up() -> None:
    async with dispatching() as running:
        with pytest.raises(ServiceUnavailable, match="no replica is up"):
            await answer(running)


async def test_closing_the_stream_aborts_it_everywhere(prefill: FakeReplica, decode: FakeReplica) -> None:
    decode.faults.pause_at = 3
    async with dispatching(prefill, decode) as running:
        stream = running.dispatcher.stream(FULL)
        for _ in range(3):
            await anext(stream)
        await stream.aclose()
        await decode.until(lambda replica: len(replica.got(Abort)) == 1)
        await all_let_go(prefill, decode)
        assert running.fleet.inflight[decode.replica_id] == 0


async def test_cancelling_before_the_first_token_releases_reservation_and_prefill(
    prefill: FakeReplica, decode: FakeReplica
) -> None:
    prefill.faults.pause_at = 0
    async with dispatching(prefill, decode) as running:
        stream = asyncio.create_task(answer(running))
        await prefill.until(lambda replica: bool(replica.held))
        assert running.fleet.inflight[prefill.replica_id] == running.fleet.inflight[decode.replica_id] == 1
        stream.cancel()
        await asyncio.wait([stream])
        await all_let_go(prefill, decode)
        assert running.fleet.inflight[prefill.replica_id] == running.fleet.inflight[decode.replica_id] == 0


async def test_finished_stream_sends_no_abort(mixed: FakeReplica) -> None:
    async with dispatching(mixed) as running:
        await answer(running)
        await answer(running)
        assert mixed.got(Abort) == []


@pytest.mark.parametrize("prefills", ["mixed-0", "prefill-0"])
async def test_prompt_is_in_line_at_who_computes_it_until_the_first_token(prefills: str) -> None:
    replicas = [fake(name) for name in ([prefills] if prefills == "mixed-0" else [prefills, "decode-0"])]
    replicas[0].faults.pause_at = 0
    async with dispatching(*replicas) as running, asyncio.timeout(DEADLINE_S):
        answering = asyncio.ensure_future(answer(running))
        await replicas[0].until(lambda replica: bool(replica.got(Submit)))
        name = replicas[0].replica_id
        assert running.fleet.inflight.prefill_line(name) == (len(FULL.prompt_token_ids),)
        replicas[0].faults.resumed.set()
        assert await answering == ANSWER
        assert running.fleet.inflight.prefill_line(name) == ()


async def test_prompt_is_in_line_at_prefill_and_awaited_by_decode_until_it_is_computed(
    prefill: FakeReplica, decode: FakeReplica
) -> None:
    prefill.faults.pause_at = 0
    async with dispatching(prefill, decode) as running:
        stream = asyncio.create_task(answer(running))
        await prefill.until(lambda replica: bool(replica.got(Submit)))
        inflight = running.fleet.inflight
        assert inflight.prefill_line(prefill.replica_id) == (len(FULL.prompt_token_ids),)
        assert inflight.num_awaited(decode.replica_id) == 1
        stream.cancel()
        await asyncio.wait([stream])
        assert inflight.prefill_line(prefill.replica_id) == ()
        assert inflight.num_awaited(decode.replica_id) == 0
