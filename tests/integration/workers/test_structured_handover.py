"""Forms at real replicas: compiled on both sides of a hand-over, refused before anything runs, and nobody waits."""

from collections.abc import Callable, Iterator

import pytest

from kvasir.demo import demo_model_path
from kvasir_protocol.ids import RequestId
from kvasir_protocol.messages import Abort, Rejected, Reserve, Reserved, Submit
from kvasir_protocol.request import GenerationRequest, SamplingParams
from kvasir_protocol.structured import structured_output
from tests.integration.workers.conftest import SECRET, StartReplica
from tests.wire_client import WireClient, clients, hand_over, submit_to_leave, token_ids

DEMO_MODEL = demo_model_path()
PROMPT = tuple((7 * i + 3) % 256 for i in range(41))
SCHEMA = {"type": "array", "items": {"type": "integer", "maximum": 99, "minimum": -99}, "minItems": 3, "maxItems": 3}
SLOW: dict[str, object] = {"json": {"type": "integer", "multipleOf": 99999989}}


def request(name: str, form: dict[str, object] | None, *, max_tokens: int = 200, **more: object) -> GenerationRequest:
    sampling = SamplingParams(
        max_tokens=max_tokens,
        seed=11,
        structured_outputs=structured_output(form) if form is not None else None,
        **more,  # type: ignore[arg-type]
    )
    return GenerationRequest(request_id=RequestId(name), prompt_token_ids=PROMPT, sampling=sampling)


Connect = Callable[[str], WireClient]


@pytest.fixture
def connect(start_replica: StartReplica) -> Iterator[Connect]:
    """connect(role) -> a client of a new replica with the demo model."""
    with clients(SECRET) as connect:
        yield lambda role: connect(start_replica(role, path=DEMO_MODEL, kv_cache_bytes=2**24).endpoint)


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_handed_over_structured_answer_is_that_of_a_mixed_replica(connect: Connect, temperature: float) -> None:
    mixed, prefill, decode = connect("mixed"), connect("prefill"), connect("decode")
    for index, form in enumerate([{"json": SCHEMA}, {"regex": "(ab|cd){4}"}, {"choice": ["yes", "no"]}]):
        expected = mixed.generate(request(f"m{index}", form, temperature=temperature))
        first, rest = hand_over(request(f"h{index}", form, temperature=temperature), prefill, decode)
        assert token_ids(first) + token_ids(rest) == expected
        assert (first[-1].finish_reason, rest[-1].finish_reason) == ("handed_over", "stop")


def test_answer_that_is_complete_with_its_first_token_is_not_handed_over(connect: Connect) -> None:
    prefill, decode = connect("prefill"), connect("decode")
    item = request("h", {"choice": ["a"]})
    decode.send(Reserve(request=item, deadline_s=5))
    ticket = decode.expect(Reserved).ticket
    submit_to_leave(prefill, item, ticket)
    assert prefill.outputs_of(item.request_id)[-1].finish_reason == "stop"


@pytest.mark.parametrize("form", [{"json": {"not": {}}}, {"regex": "(?=a)b"}, {"grammar": "start: x"}, SLOW])
@pytest.mark.parametrize("kind", [Submit, Reserve])
def test_form_that_can_not_be_had_is_rejected_before_anything_runs(
    connect: Connect, form: dict[str, object], kind: type
) -> None:
    client = connect("mixed")
    item = request("r", form)
    client.send(Submit(request=item) if kind is Submit else Reserve(request=item, deadline_s=30))
    rejected = client.expect(Rejected)
    assert (rejected.request_id, rejected.is_invalid, rejected.field) == ("r", True, "structured_outputs")
    assert client.stats().stats.engine.num_steps == 0


def test_nobody_waits_for_the_grammar_of_another(connect: Connect) -> None:
    client = connect("mixed")
    client.send(Submit(request=request("slow", SLOW)))
    assert len(client.generate(request("free", None, ignore_eos=True))) == 200
    assert client.generate(request("quick", {"choice": ["yes", "no"]}))
    assert client.expect(Rejected).request_id == "slow"


def test_request_that_is_aborted_while_its_grammar_compiles_leaves_nothing(connect: Connect) -> None:
    client = connect("mixed")
    client.send(Submit(request=request("r", {"json": SCHEMA})))
    client.send(Abort(request_id=RequestId("r")))
    client.generate(request("after", {"json": SCHEMA}))
    stats = client.settled_stats().stats
    assert (stats.num_running, stats.num_waiting, stats.num_used_pages, stats.engine.finished_stop) == (0, 0, 0, 1)


def test_replay_elsewhere_goes_on_with_the_same_answer(connect: Connect) -> None:
    one, other = connect("mixed"), connect("mixed")
    item = request("r", {"json": SCHEMA}, temperature=1.0)
    tokens = one.generate(item)
    for num_emitted in range(1, len(tokens)):
        replay = GenerationRequest(
            request_id=RequestId(f"r{num_emitted}"),
            prompt_token_ids=PROMPT,
            sampling=item.sampling,
            emitted_token_ids=tuple(tokens[:num_emitted]),
        )
        assert tokens[:num_emitted] + other.generate(replay) == tokens


def test_emitted_tokens_that_are_not_of_the_form_are_rejected(connect: Connect) -> None:
    client = connect("mixed")
    item = request("r", {"json": SCHEMA})
    wrong = GenerationRequest(
        request_id=RequestId("w"), prompt_token_ids=PROMPT, sampling=item.sampling, emitted_token_ids=(100, 101)
    )
    client.send(Submit(request=wrong))
    assert client.expect(Rejected).field == "emitted_token_ids"
