"""Random mixes of everything that an engine can be asked to do, in pools that are too small."""

import dataclasses
import random
from dataclasses import dataclass

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from kvasir_protocol.errors import ServiceUnavailable
from kvasir_protocol.ids import RequestId
from kvasir_protocol.request import GenerationRequest
from kvasir_workers.kv.manager import Reuse
from kvasir_workers.sequence import Sequence
from tests.unit.workers.engine_house import House, greedy
from tests.unit.workers.fake_tiers import FakeTiers
from tests.unit.workers.fakes import (
    VOCAB_SIZE,
    ExportedPages,
    expected_answer,
    make_request,
)

policies = st.fixed_dictionaries(
    {
        "scheduling_policy": st.sampled_from(["fcfs", "priority", "longest-prefix"]),
        "admission_policy": st.sampled_from(["max-utilization", "no-evict"]),
        "max_prefill_chunk_tokens": st.none() | st.integers(1, 6),
        "fair_share": st.booleans(),
        "max_waiting_requests": st.none() | st.integers(1, 3),
        "max_waiting_tokens": st.none() | st.integers(1, 30),
    }
)
"""Any mix of policies and bounds."""


@dataclass(frozen=True)
class Stream:
    """What a request was, what the client had before, and what this engine should say."""

    request: GenerationRequest
    before: list[int]
    expected: list[int]


class Traffic(RuleBasedStateMachine):
    """Everything at once, in pools that are too small; all streams are checked at the end, the books all the time."""

    @initialize(
        num_pages=st.integers(5, 14),
        page_size=st.integers(1, 4),
        max_num_seqs=st.integers(1, 5),
        spare_budget=st.integers(0, 9),
        reuse=st.builds(
            Reuse,
            enabled=st.sampled_from([True, True, False]),
            min_copied_tokens=st.integers(1, 2),
            min_awaited_pages=st.integers(1, 2),
        ),
        policies=policies,
        overlap=st.booleans(),
        num_batches=st.sampled_from([1, 1, 2, 3]),
        is_prompt=st.booleans(),
        num_host_slots=st.sampled_from([0, 1, 4, 12]),
        num_disk_slots=st.sampled_from([0, 3, 20]),
        is_cheap=st.sampled_from([True, True, False]),
        disk_is_quick=st.booleans(),
    )
    def start(
        self,
        num_pages: int,
        page_size: int,
        max_num_seqs: int,
        spare_budget: int,
        reuse: Reuse,
        policies: dict[str, object],
        overlap: bool,
        num_batches: int,
        is_prompt: bool,
        num_host_slots: int,
        num_disk_slots: int,
        is_cheap: bool,
        disk_is_quick: bool,
    ) -> None:
        self.disk_is_quick = disk_is_quick
        self.below = None
        if num_host_slots and reuse.enabled and num_batches == 1:
            self.below = FakeTiers(num_host_slots, page_size, num_disk_slots=num_disk_slots, is_cheap=is_cheap)
        self.house = House(
            num_pages=num_pages,
            page_size=page_size,
            max_num_seqs=max_num_seqs,
            budget=max_num_seqs + spare_budget,
            reuse=reuse,
            overlap=overlap and num_batches == 1,
            num_batches=num_batches,
            is_prompt=is_prompt,
            below=self.below,
            **policies,
        )
        self.never_evicts = policies["admission_policy"] == "no-evict"
        self.streams: dict[str, Stream] = {}
        self.aborted: set[str] = set()
        self.reserved: list[Sequence] = []
        self.exported: list[tuple[ExportedPages, list[int]]] = []
        self.num_exports = 0

    def make(self, draw: random.Random) -> GenerationRequest | None:
        name = f"r{len(self.streams)}"
        max_tokens = draw.randint(1, 6)
        longest = self.house.capacity - max_tokens
        if longest < 1:
            return None
        sampling = greedy(
            max_tokens=max_tokens,
            min_tokens=draw.randint(0, max_tokens),
            ignore_eos=draw.random() < 0.5,
            stop_token_ids=tuple(draw.sample(range(VOCAB_SIZE), draw.choice([0, 0, 2]))),
        )
        prompt = [draw.choice([1, 1, 1, 2]) for _ in range(draw.randint(1, min(longest, 20)))]
        marks: dict[str, object] = {
            "salt": draw.choice(["", "", "x"]),
            "priority": draw.randint(-1, 1),
            "tenant": draw.choice("abc"),
            "deadline_s": draw.choice([None, None, 3.0]),
            "cache_priority": draw.choice([0, 0, 1]),
        }
        if self.streams and draw.random() < 0.3:  # the next turn of a chat
            earlier = draw.choice(list(self.streams.values()))
            prompt = [*earlier.request.prompt_token_ids, *earlier.before, *earlier.expected, *prompt][:longest]
            marks["salt"] = earlier.request.cache_salt
        request = make_request(name, prompt, sampling=sampling, **marks)  # type: ignore[arg-type]
        answer, _ = expected_answer(request)
        if len(answer) > 1 and draw.random() < 0.3:
            emitted = answer[: draw.randint(1, len(answer) - 1)]
            request = dataclasses.replace(request, emitted_token_ids=tuple(emitted))
        return request

    def expect(self, request: GenerationRequest, num_elsewhere: int = 0, num_here: int = 99) -> None:
        """The engine will say num_here tokens, after those that were emitted before or by another replica."""
        answer, _ = expected_answer(request)
        start = len(request.emitted_token_ids) + num_elsewhere
        self.streams[request.request_id] = Stream(request, answer[:start], answer[start : start + num_here])

    @rule(draw=st.randoms(use_true_random=False))
    def add(self, draw: random.Random) -> None:
        if (request := self.make(draw)) is not None and self.try_add(request):
            self.expect(request)

    def try_add(self, request: GenerationRequest, *, is_prefill_only: bool = False) -> bool:
        try:
            self.house.engine.add(request, is_prefill_only=is_prefill_only)
        except ServiceUnavailable:
            self.house.engine.audit()
            assert not request.emitted_token_ids, "a stream that was accepted before is refused"
            return False
        return True

    @rule(draw=st.randoms(use_true_random=False))
    def add_for_hand_over(self, draw: random.Random) -> None:
        if (request := self.make(draw)) is not None and self.try_add(request, is_prefill_only=True):
            self.expect(request, num_here=1)

    @rule(seconds=st.floats(0, 3))
    def turn_the_clock(self, seconds: float) -> None:
        self.house.clock.now += seconds

    @precondition(lambda self: self.below is not None)
    @rule(num_jobs=st.integers(1, 9))
    def let_the_disk_work(self, num_jobs: int) -> None:
        assert self.below is not None
        self.below.disk.work(num_jobs)
        self.house.engine.audit()

    @precondition(lambda self: self.below is not None)
    @rule(breaks=st.booleans())
    def spoil_the_disk(self, breaks: bool) -> None:
        assert self.below is not None
        self.below.disk.spoil()
        self.below.disk.is_broken = self.below.disk.is_broken or breaks

    @rule()
    def clear_cache(self) -> None:
        self.house.kv.clear_cache()
        self.house.engine.audit()

    @rule(num_steps=st.integers(1, 4))
    def step(self, num_steps: int) -> None:
        for _ in range(num_steps):
            self.house.step()
            if self.below is not None and self.disk_is_quick:
                self.below.disk.work()
            self.note_exports()

    def note_exports(self) -> None:
        for item in self.house.exporter.exported[self.num_exports :]:
            size = self.house.kv.page_size
            tokens = item.sequence.token_ids[item.first_page * size : (item.first_page + len(item.pages)) * size]
            num_known = min(len(tokens), len(item.sequence.request.prompt_token_ids) - item.first_page * size)
            self.exported.append((item, tokens[: max(0, num_known)]))
        self.num_exports = len(self.house.exporter.exported)

    @precondition(lambda self: self.streams)
    @rule(index=st.integers(0, 99))
    def abort(self, index: int) -> None:
        name = list(self.streams)[index % len(self.streams)]
        if self.house.engine.abort(RequestId(name)):
            self.aborted.add(name)
            self.house.engine.audit()

    @precondition(lambda self: self.aborted)
    @rule(index=st.integers(0, 99))
    def replay(self, index: int) -> None:
        """The router gives an aborted stream to us again, after the tokens that it has seen."""
        name = sorted(self.aborted)[index % len(self.aborted)]
        request, emitted = self.streams[name].request, [*self.streams[name].before, *self.house.tokens(name)]
        again = make_request(
            f"r{len(self.streams)}",
            request.prompt_token_ids,
            sampling=request.sampling,
            emitted=emitted,
            salt=request.cache_salt,
        )
        if self.try_add(again):
            self.expect(again)

    @rule(draw=st.randoms(use_true_random=False))
    def reserve(self, draw: random.Random) -> None:
        request = self.make(draw)
        if request is None or len(expected_answer(request)[0]) < len(request.emitted_token_ids) + 2:
            return
        try:
            self.reserved.append(self.house.reserve(request))
        except ServiceUnavailable:
            self.house.engine.audit()
        else:
            self.expect(request, num_here=0)

    @precondition(lambda self: self.reserved)
    @rule(index=st.integers(0, 99))
    def start_reserved(self, index: int) -> None:
        sequence = self.reserved.pop(index % len(self.reserved))
        self.house.fill(sequence)
        answer, _ = expected_answer(sequence.request)
        first = answer[len(sequence.request.emitted_token_ids)]
        self.house.engine.start_reserved(sequence, (first,))
        self.house.engine.audit()
        self.expect(sequence.request, num_elsewhere=1)

    @precondition(lambda self: self.reserved)
    @rule(index=st.integers(0, 99))
    def release_reserved(self, index: int) -> None:
        self.house.engine.release_reserved(self.reserved.pop(index % len(self.reserved)))
        self.house.engine.audit()

    @precondition(lambda self: self.exported)
    @rule(index=st.integers(0, 99))
    def release_exported(self, index: int) -> None:
        item, tokens = self.exported.pop(index % len(self.exported))
        assert self.house.runner.read(item.pages, len(tokens)) == tokens, "a page changed before it was sent"
        self.house.engine.release_exported(item.pages)
        self.house.engine.audit()

    @invariant()
    def streams_are_prefixes_of_what_they_should_be(self) -> None:
        for name, stream in getattr(self, "streams", {}).items():
            tokens = self.house.tokens(name)
            assert tokens == stream.expected[: len(tokens)]

    @invariant()
    def nobody_is_evicted_who_was_promised_not_to_be(self) -> None:
        if getattr(self, "never_evicts", False):
            assert self.house.engine.counters().num_preemptions == 0

    def teardown(self) -> None:
        if not hasattr(self, "house"):
            return
        while self.reserved:
            self.release_reserved(0)
        self.note_exports()
        while self.exported:
            self.release_exported(0)
        for _ in range(2000):
            if not self.house.engine.has_work:
                break
            self.step(1)
            while self.exported:
                self.release_exported(0)
        assert not self.house.engine.has_work, "somebody waits for ever"
        self.check_the_end()

    def check_the_end(self) -> None:
        house, counters = self.house, self.house.engine.counters()
        assert house.engine.num_used_pages == 0
        for name, stream in self.streams.items():
            assert name in self.aborted or self.gave_up(name) or house.tokens(name) == stream.expected
        assert counters.generated_tokens == sum(len(house.tokens(name)) for name in self.streams)
        ended = [outputs[-1].finish_reason for outputs in house.outputs.values()]
        assert counters.finished_stop == ended.count("stop")
        assert counters.finished_length == ended.count("length")
        assert counters.finished_error == ended.count("error")
        assert counters.finished_handed_over == ended.count("handed_over") == len(house.exporter.finished)
        assert counters.finished_abort == len(self.aborted)
        assert counters.num_steps == len(house.runner.plans)
        assert counters.cached_prompt_tokens <= counters.prompt_tokens

    def gave_up(self, name: str) -> bool:
        """The engine ended a request that was late, before it said anything."""
        outputs = self.house.outputs.get(name, [])
        return [(output.finish_reason, output.token_ids) for output in outputs] == [("error", ())]


TestTraffic = Traffic.TestCase
TestTraffic.settings = settings(max_examples=40, stateful_step_count=40)
