"""Pages that go from one real replica to another."""

from collections.abc import Callable, Iterator
from contextlib import closing

import pytest

from kvasir_protocol.config import TransportName
from kvasir_protocol.ids import RequestId
from kvasir_protocol.messages import (
    Abort,
    BeginPush,
    CancelPush,
    HandOver,
    HandoverFailed,
    HandoverTicket,
    PushGranted,
    PushRefused,
    Quiet,
    Reserve,
    Reserved,
    ReserveRefused,
    Submit,
)
from kvasir_protocol.request import GenerationRequest, SamplingParams
from kvasir_workers.replica import Replica
from tests.integration.workers.conftest import SECRET, StartReplica
from tests.wire_client import WireClient, clients, hand_over, submit_to_leave, token_ids

PROMPT = tuple((7 * i + 3) % 256 for i in range(41))
NUM_PAGES = 11
PAGE_BYTES = 3 * 2 * 4 * 2 * 16 * 4
"""Of float32: layers, key and value, tokens, heads, numbers of a head."""


def request(
    name: str, *, prompt: tuple[int, ...] = PROMPT, max_tokens: int = 12, temperature: float = 0.0
) -> GenerationRequest:
    sampling = SamplingParams(max_tokens=max_tokens, temperature=temperature, seed=11, ignore_eos=True)
    return GenerationRequest(request_id=RequestId(name), prompt_token_ids=prompt, sampling=sampling)


Connect = Callable[[Replica], WireClient]


@pytest.fixture
def connect() -> Iterator[Connect]:
    with clients(SECRET) as connect:
        yield lambda replica: connect(replica.endpoint)


@pytest.mark.parametrize("transport", ["shared-memory", "process-group", "tcp"])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_handed_over_pages_give_the_tokens_of_a_mixed_replica(
    start_replica: StartReplica, connect: Connect, transport: TransportName, temperature: float
) -> None:
    mixed = connect(start_replica("mixed"))
    prefill, decode = connect(start_replica("prefill", transport)), connect(start_replica("decode", transport))
    expected = mixed.generate(request("m", temperature=temperature))
    first, rest = hand_over(request("h", temperature=temperature), prefill, decode)
    assert token_ids(first) + token_ids(rest) == expected
    assert (first[-1].finish_reason, rest[0].first_index, rest[-1].finish_reason) == ("handed_over", 1, "length")


ONE, TP2, PP2, TP2_PP2 = (1, 1), (2, 1), (1, 2), (2, 2)


@pytest.mark.parametrize(
    ("prefill_ranks", "decode_ranks", "transport", "label"),
    [
        (TP2_PP2, PP2, "shared-memory", "shared_memory"),
        (PP2, TP2, "tcp", "tcp"),
        (TP2, ONE, "process-group", "process_group"),
    ],
    ids=lambda value: f"{value[0]}x{value[1]}" if isinstance(value, tuple) else value,
)
def test_pages_go_between_replicas_whose_ranks_are_processes_and_share_the_model_differently(
    start_replica: StartReplica,
    connect: Connect,
    prefill_ranks: tuple[int, int],
    decode_ranks: tuple[int, int],
    transport: TransportName,
    label: str,
) -> None:
    """All forms with all transports, with ranks as threads: tests/integration/parallel/test_hosted_gang.py."""
    mixed = connect(start_replica("mixed"))
    prefill = connect(start_replica("prefill", transport, ranks=prefill_ranks))
    decode = connect(start_replica("decode", transport, ranks=decode_ranks))
    expected = mixed.generate(request("m"))
    first, rest = hand_over(request("h"), prefill, decode)
    assert token_ids(first) + token_ids(rest) == expected
    assert getattr(prefill.stats().stats.handover, f"pushed_bytes_{label}") == NUM_PAGES * PAGE_BYTES
    assert decode.stats().stats.engine.computed_prompt_tokens == 0


@pytest.mark.parametrize(("transport", "label"), [("shared-memory", "shared_memory"), ("tcp", "tcp")])
def test_pages_of_float8_are_handed_over_in_a_quarter_of_the_bytes(
    start_replica: StartReplica, connect: Connect, transport: TransportName, label: str
) -> None:
    mixed = connect(start_replica("mixed", kv_cache_dtype="fp8"))
    prefill, decode = (connect(start_replica(role, transport, kv_cache_dtype="fp8")) for role in ("prefill", "decode"))
    expected = mixed.generate(request("m"))
    first, rest = hand_over(request("h"), prefill, decode)
    assert token_ids(first) + token_ids(rest) == expected
    assert getattr(prefill.stats().stats.handover, f"pushed_bytes_{label}") == NUM_PAGES * PAGE_BYTES // 4
    assert decode.stats().stats.engine.computed_prompt_tokens == 0


def test_many_handed_over_requests_at_once_give_the_tokens_of_one_at_a_time(
    start_replica: StartReplica, connect: Connect
) -> None:
    mixed, prefill, decode = (connect(start_replica(role)) for role in ("mixed", "prefill", "decode"))
    prompts = [PROMPT[: 5 + 3 * i] for i in range(6)]
    expected = [mixed.generate(request(f"m{i}", prompt=prompt)) for i, prompt in enumerate(prompts)]
    requests = [request(f"h{i}", prompt=prompt) for i, prompt in enumerate(prompts)]
    for item in requests:
        decode.send(Reserve(request=item, deadline_s=10))
    for item in requests:
        reserved = decode.expect(Reserved, lambda m, name=item.request_id: m.request_id == name)
        submit_to_leave(prefill, item, reserved.ticket)
    for item, tokens in zip(requests, expected, strict=True):
        assert token_ids(prefill.outputs_of(item.request_id)) + token_ids(decode.outputs_of(item.request_id)) == tokens


@pytest.mark.parametrize(
    ("transport", "label"), [("auto", "shared_memory"), ("process-group", "process_group"), ("tcp", "tcp")]
)
def test_counters_tell_who_prefilled_who_decoded_and_how_many_bytes_went_over(
    start_replica: StartReplica, connect: Connect, transport: TransportName, label: str
) -> None:
    prefill, decode = connect(start_replica("prefill", transport)), connect(start_replica("decode", transport))
    hand_over(request("h"), prefill, decode)
    on_prefill, on_decode = prefill.stats().stats, decode.stats().stats
    assert (on_prefill.engine.computed_prompt_tokens, on_prefill.engine.generated_tokens) == (len(PROMPT), 1)
    assert (on_decode.engine.computed_prompt_tokens, on_decode.engine.generated_tokens) == (0, 11)
    assert getattr(on_prefill.handover, f"pushed_bytes_{label}") == NUM_PAGES * PAGE_BYTES
    assert (on_prefill.handover.pushed_requests, on_decode.handover.received_requests) == (1, 1)


def test_decode_replica_that_holds_the_prefix_is_sent_only_the_rest(
    start_replica: StartReplica, connect: Connect
) -> None:
    prefill, decode = connect(start_replica("prefill")), connect(start_replica("decode"))
    first, rest = hand_over(request("a"), prefill, decode)
    before = prefill.stats().stats.handover.pushed_bytes_shared_memory
    again_first, again_rest = hand_over(request("b"), prefill, decode)
    pushed = prefill.stats().stats.handover.pushed_bytes_shared_memory - before
    assert token_ids(again_first + again_rest) == token_ids(first + rest)
    assert pushed == before // NUM_PAGES
    assert again_first[0].num_cached_tokens == 40


@pytest.mark.parametrize("transport", ["shared-memory", "process-group", "tcp"])
def test_answer_that_ends_with_its_first_token_needs_no_decode_replica(
    start_replica: StartReplica, connect: Connect, transport: TransportName
) -> None:
    prefill, decode = connect(start_replica("prefill", transport)), connect(start_replica("decode", transport))
    item = request("one", max_tokens=1)
    decode.send(Reserve(request=item, deadline_s=10))
    submit_to_leave(prefill, item, decode.expect(Reserved).ticket)
    outputs = prefill.outputs_of(item.request_id)
    decode.send(Abort(request_id=item.request_id))
    assert [output.finish_reason for output in outputs] == ["length"]
    assert_no_pages_used(decode)
    assert_no_pages_used(prefill)


@pytest.mark.parametrize("transport", ["shared-memory", "tcp"])
def test_reservation_of_an_answer_that_ended_at_prefill_lasts_until_its_deadline(
    start_replica: StartReplica, connect: Connect, transport: TransportName
) -> None:
    """Nobody aborts it, as when the router has died; nor does its failure come at once, which would be a race."""
    prefill, decode = connect(start_replica("prefill", transport)), connect(start_replica("decode", transport))
    item = request("one", max_tokens=1)
    decode.send(Reserve(request=item, deadline_s=0.5))
    submit_to_leave(prefill, item, decode.expect(Reserved).ticket)
    prefill.outputs_of(item.request_id)
    assert decode.expect(HandoverFailed).reason == "no pages for 0.5 s"
    assert_no_pages_used(decode)


def assert_no_pages_used(client: WireClient) -> None:
    """Pages come back between two steps of another thread: ask until they have (stats fail after a deadline)."""
    while client.stats().stats.num_used_pages:
        pass


def test_reservation_without_pages_fails_at_its_deadline_and_local_prefill_answers(
    start_replica: StartReplica, connect: Connect
) -> None:
    decode = connect(start_replica("decode"))
    expected = decode.generate(request("m"))
    item = request("late", prompt=PROMPT[1:])
    decode.send(Reserve(request=item, deadline_s=0.1))
    decode.expect(Reserved)
    failed = decode.expect(HandoverFailed)
    assert failed.request_id == item.request_id
    assert_no_pages_used(decode)
    assert decode.generate(request("m2")) == expected


@pytest.mark.parametrize(
    ("setting", "told"), [({"page_size": 8}, "page_size=8"), ({"kv_cache_dtype": "fp8"}, "dtype='float8_e4m3fn'")]
)
def test_pages_of_another_layout_are_refused_with_a_reason(
    start_replica: StartReplica, connect: Connect, setting: dict[str, object], told: str
) -> None:
    prefill, decode = connect(start_replica("prefill", **setting)), connect(start_replica("decode"))
    item = request("odd")
    decode.send(Reserve(request=item, deadline_s=10))
    submit_to_leave(prefill, item, decode.expect(Reserved).ticket)
    assert told in decode.expect(HandoverFailed).reason
    assert token_ids(prefill.outputs_of(item.request_id))
    assert_no_pages_used(decode)
    assert_no_pages_used(prefill)


def test_replica_without_room_refuses_to_reserve(start_replica: StartReplica, connect: Connect) -> None:
    decode = connect(start_replica("decode", kv_cache_bytes=14 * PAGE_BYTES))
    decode.send(Reserve(request=request("a"), deadline_s=10))
    decode.expect(Reserved)
    decode.send(Reserve(request=request("b", prompt=PROMPT[1:]), deadline_s=10))
    assert "pages are free" in decode.expect(ReserveRefused).reason


def begin_push(ticket: HandoverTicket, replica: Replica) -> BeginPush:
    """Of a writer that is the first process of this host."""
    return BeginPush(
        request_id=RequestId("q"),
        generation=ticket.generation,
        layout=replica.layout,
        process_id=1,
        process_start=0,
        uses_shared_memory=True,
    )


def test_aborted_pages_stay_quarantined_until_the_writer_is_quiet(
    start_replica: StartReplica, connect: Connect
) -> None:
    replica = start_replica("decode")
    router, writer = connect(replica), connect(replica)
    router.send(Reserve(request=request("q"), deadline_s=10))
    ticket = router.expect(Reserved).ticket
    writer.send(begin_push(ticket, replica))
    writer.expect(PushGranted)
    router.send(Abort(request_id=RequestId("q")))
    assert writer.expect(CancelPush).generation == ticket.generation
    assert router.stats().stats.handover.quarantined_pages == NUM_PAGES
    writer.send(Quiet(generation=ticket.generation, reason="stopped"))
    assert_no_pages_used(writer)


def test_push_into_a_reservation_that_is_gone_is_refused(start_replica: StartReplica, connect: Connect) -> None:
    replica = start_replica("decode")
    router, writer = connect(replica), connect(replica)
    router.send(Reserve(request=request("q"), deadline_s=10))
    ticket = router.expect(Reserved).ticket
    router.send(Abort(request_id=RequestId("q")))
    assert_no_pages_used(router)
    writer.send(begin_push(ticket, replica))
    assert "no such reservation" in writer.expect(PushRefused).reason


def test_pages_may_be_set_aside_when_the_prompt_is_computed(start_replica: StartReplica, connect: Connect) -> None:
    mixed, prefill, decode = (connect(start_replica(role)) for role in ("mixed", "prefill", "decode"))
    expected, item = mixed.generate(request("m")), request("h")
    prefill.send(Submit(request=item, ticket_within_s=10))
    first = prefill.outputs_of(item.request_id)
    decode.send(Reserve(request=item, deadline_s=10))
    prefill.send(HandOver(request_id=item.request_id, ticket=decode.expect(Reserved).ticket))
    assert token_ids(first) + token_ids(decode.outputs_of(item.request_id)) == expected
    assert decode.stats().stats.engine.computed_prompt_tokens == 0
    assert_no_pages_used(prefill)


@pytest.mark.parametrize("is_aborted", [True, False])
def test_pages_that_nobody_names_a_place_for_are_given_back(
    start_replica: StartReplica, connect: Connect, is_aborted: bool
) -> None:
    prefill = connect(start_replica("prefill"))
    item = request("lost")
    prefill.send(Submit(request=item, ticket_within_s=30.0 if is_aborted else 0.1))
    assert prefill.outputs_of(item.request_id)[-1].finish_reason == "handed_over"
    if is_aborted:
        prefill.send(Abort(request_id=item.request_id))
    assert_no_pages_used(prefill)


def test_aborted_prefill_gives_its_pages_back(start_replica: StartReplica, connect: Connect) -> None:
    prefill, decode = connect(start_replica("prefill")), connect(start_replica("decode"))
    item = request("gone", prompt=tuple(i % 256 for i in range(300)))
    decode.send(Reserve(request=item, deadline_s=10))
    submit_to_leave(prefill, item, decode.expect(Reserved).ticket)
    prefill.send(Abort(request_id=item.request_id))
    decode.send(Abort(request_id=item.request_id))
    assert_no_pages_used(prefill)
    assert_no_pages_used(decode)


@pytest.mark.parametrize("frames", [(b"",), (b"\xc1",), (b"\x80",), (b"a", b"b"), (b"\x81\xa1v\x01",)])
def test_bad_frames_are_dropped_and_harm_nobody(
    start_replica: StartReplica, connect: Connect, frames: tuple[bytes, ...]
) -> None:
    client = connect(start_replica("mixed"))
    client.send_raw(*frames)
    assert len(client.generate(request("after"))) == 12


def test_stranger_without_the_secret_gets_no_answer(start_replica: StartReplica) -> None:
    replica = start_replica("mixed")
    with closing(WireClient(replica.endpoint, b"x" * 32)) as stranger:
        assert not stranger.hears_anything(wait_s=0.5)
    with closing(WireClient(replica.endpoint, SECRET)) as friend:
        assert friend.stats()
