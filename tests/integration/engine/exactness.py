"""Runs scenarios in real engines and holds every token and logprob against transformers and against a run alone.

More than the tests take time for: python -m tests.integration.engine.exactness --examples 5000 --seed 1
"""

import argparse
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from hypothesis import HealthCheck, given, seed, settings
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedModel

from kvasir_protocol.config import EngineConfig, ModelConfig
from kvasir_protocol.events import TokenLogprobs, TokenOutput
from kvasir_protocol.ids import RequestId
from kvasir_protocol.request import GenerationRequest
from kvasir_workers.engine import Engine
from kvasir_workers.kv.offload.open_tiers import open_tiers
from kvasir_workers.kv.offload.page_file import RECORD_OVERHEAD_BYTES
from kvasir_workers.load import build_engine, load_model
from tests.checkpoints import make_checkpoint
from tests.integration.engine.conftest import FAMILIES, never_compute
from tests.integration.engine.rounding import possible_choices
from tests.integration.engine.scenarios import Scenario, TierPages, scenarios

TOLERANCE = 1e-4

MAX_STEPS = 3000
"""Far more than the longest day takes: who is not done by then waits for ever."""

ALONE = EngineConfig(device="cpu", enable_prefix_caching=False, overlap=False)

SMALL = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "head_dim": 8}


class Checkpoint:
    """One family's small random model, ours and theirs."""

    def __init__(self, path: Path, family: str) -> None:
        make_checkpoint(path, family, **(SMALL | FAMILIES[family]))
        self._path = path
        self._loaded = load_model(
            ModelConfig(path=str(path), served_name="m", dtype="float32"),
            EngineConfig(device="cpu", kv_cache_bytes=2**20),
        )
        self._theirs: PreTrainedModel = AutoModelForCausalLM.from_pretrained(
            path, dtype=torch.float32, attn_implementation="eager"
        )
        self.eos_token_ids = self._loaded.limits.eos_token_ids

    @contextmanager
    def engine(self, config: EngineConfig, num_pages: int, tiers: TierPages | None = None) -> Iterator[Engine]:
        """An engine with pages that are NaN until they are written."""
        layers, two, _, _, heads, head_dim = self._loaded.pages.shape
        pages = torch.full((layers, two, num_pages, config.page_size, heads, head_dim), torch.nan)
        limits = replace(self._loaded.limits, max_sequence_tokens=num_pages * config.page_size)
        loaded = replace(self._loaded, pages=pages, limits=limits)
        if tiers is None or not config.enable_prefix_caching:
            yield build_engine(loaded, config)
            return
        page_bytes = pages[:, :, 0].nbytes
        opened = open_tiers(
            pages,
            replace(
                config,
                host_cache_bytes=tiers.host * page_bytes,
                disk_cache_bytes=tiers.disk * (page_bytes + RECORD_OVERHEAD_BYTES),
                disk_cache_path=str(self._path) if tiers.disk else None,
            ),
        )
        assert opened is not None, "tiers were asked for"
        never_compute(opened)
        pages.fill_(torch.nan)
        try:
            yield build_engine(loaded, config, opened=opened)
        finally:
            opened.tiers.close()

    @torch.inference_mode()
    def reference(self, texts: list[list[int]]) -> Tensor:
        """Their log-probabilities of what follows each token of each text: [texts, longest, V]."""
        longest = max(map(len, texts))
        ids = torch.tensor([text + [0] * (longest - len(text)) for text in texts])
        # Attention looks back only: the padding behind a text changes nothing in it.
        logits = self._theirs(ids, attention_mask=torch.ones_like(ids)).logits
        return torch.log_softmax(logits.float(), dim=-1)


@dataclass(slots=True)
class Stream:
    """A request and what an engine said to it."""

    request: GenerationRequest
    outputs: list[TokenOutput] = field(default_factory=list)
    is_aborted: bool = False

    @property
    def new_token_ids(self) -> list[int]:
        return [token for output in self.outputs for token in output.token_ids]

    @property
    def answer(self) -> list[int]:
        return [*self.request.emitted_token_ids, *self.new_token_ids]

    @property
    def text(self) -> list[int]:
        return [*self.request.prompt_token_ids, *self.answer]

    @property
    def has_ended(self) -> bool:
        return bool(self.outputs) and self.outputs[-1].finish_reason is not None

    def take(self, output: TokenOutput) -> None:
        assert not self.is_aborted, "a token came after the abort"
        assert not self.has_ended, "a token came after the last one"
        assert output.first_index == len(self.answer), "a token is missing, or came twice"
        self.outputs.append(output)


class Day:
    """A scenario on its way: one engine, and the streams that it has served."""

    def __init__(self, scenario: Scenario, checkpoint: Checkpoint, engine: Engine) -> None:
        self._scenario = scenario
        self._checkpoint = checkpoint
        self.engine = engine
        self.streams: dict[RequestId, Stream] = {}
        self._alone: dict[RequestId, list[int]] = {}

    def run(self) -> None:
        """Every visit to its end, with the books checked after each step."""
        last_arrival = max(visit.arrives_at + (visit.leaves_after or 0) for visit in self._scenario.visits)
        for now in range(MAX_STEPS):
            self._let_in(now)
            self._let_out(now)
            for output in self.engine.step():
                self.streams[output.request_id].take(output)
            self.engine.audit()
            if now > last_arrival and not self.engine.has_work:
                break
        assert not self.engine.has_work, "somebody waits for ever"
        assert self.engine.num_used_pages == 0

    def _let_in(self, now: int) -> None:
        for index, visit in enumerate(self._scenario.visits):
            if visit.arrives_at == now:
                earlier = self.streams.get(RequestId(f"r{visit.follows}"))
                talk = tuple(earlier.text) if earlier is not None else ()
                request = visit.request(f"r{index}", talk, self.engine_capacity)
                if visit.num_elsewhere:
                    emitted = self.alone(request)[: visit.num_elsewhere]
                    request = replace(request, emitted_token_ids=tuple(emitted))
                self._add(request)

    def _let_out(self, now: int) -> None:
        for index, visit in enumerate(self._scenario.visits):
            stream = self.streams.get(RequestId(f"r{index}"))
            if visit.leaves_after is None or stream is None or now != visit.arrives_at + visit.leaves_after:
                continue
            assert self.engine.abort(stream.request.request_id) != stream.has_ended
            self.engine.audit()
            stream.is_aborted = not stream.has_ended
            if visit.comes_back and stream.is_aborted:
                name = RequestId(f"{stream.request.request_id}#2")
                self._add(replace(stream.request, request_id=name, emitted_token_ids=tuple(stream.answer)))

    def _add(self, request: GenerationRequest) -> None:
        """Unless all was said elsewhere."""
        emitted = list(request.emitted_token_ids)
        if end_of(request, emitted, self._checkpoint.eos_token_ids) is None:
            self.streams[request.request_id] = Stream(request)
            self.engine.add(request)

    @property
    def engine_capacity(self) -> int:
        return self._scenario.num_pages * self._scenario.config.page_size

    def alone(self, request: GenerationRequest) -> list[int]:
        """The answer of a fresh engine that serves nobody else, from the first token on."""
        name = RequestId(request.request_id.removesuffix("#2"))
        if name not in self._alone:
            request = replace(request, emitted_token_ids=())
            stream = Stream(request)
            with self._checkpoint.engine(ALONE, num_pages=16) as engine:
                engine.add(request)
                while engine.has_work:
                    for output in engine.step():
                        stream.take(output)
            self._alone[name] = stream.answer
        return self._alone[name]


def end_of(request: GenerationRequest, answer: list[int], eos_token_ids: frozenset[int]) -> tuple[int, str] | None:
    """How many tokens the answer has and why no more, if its end is among these."""
    sampling = request.sampling
    stops = {*sampling.stop_token_ids, *(() if sampling.ignore_eos else eos_token_ids)}
    for index, token in enumerate(answer):
        if token in stops:
            return index + 1, "stop"
        if index + 1 == request.max_tokens:
            return index + 1, "length"
    return None


def check(scenario: Scenario, checkpoint: Checkpoint) -> Day:
    """Run the scenario. Raises AssertionError where a stream is not what it would be alone, or theirs."""
    with checkpoint.engine(scenario.config, scenario.num_pages, scenario.tiers) as engine:
        day = Day(scenario, checkpoint, engine)
        day.run()
    streams = list(day.streams.values())
    if not streams:
        return day
    for stream, logprobs in zip(streams, checkpoint.reference([stream.text for stream in streams]), strict=True):
        check_end(stream, checkpoint.eos_token_ids)
        check_tokens(stream, logprobs, day)
        check_logprobs(stream, logprobs)
    return day


def check_end(stream: Stream, eos_token_ids: frozenset[int]) -> None:
    end = end_of(stream.request, stream.answer, eos_token_ids)
    if not stream.is_aborted:
        assert (len(stream.answer), stream.outputs[-1].finish_reason) == end
    else:
        assert end is None, "an answer that had ended was aborted"


def check_tokens(stream: Stream, logprobs: Tensor, day: Day) -> None:
    """Greedy: their best, or as good as their best within the tolerance. Seeded: those of the request alone."""
    if stream.request.sampling.temperature > 0:
        check_seeded(stream, logprobs, day.alone(stream.request))
        return
    first = len(stream.text) - len(stream.new_token_ids)
    for index, token in enumerate(stream.new_token_ids, start=first):
        best = logprobs[index - 1].max()
        assert float(best - logprobs[index - 1, token]) <= TOLERANCE, f"token {index} is not the best"


def check_seeded(stream: Stream, logprobs: Tensor, alone: list[int]) -> None:
    """The same tokens up to one that rounding decides, after which two right answers go different ways."""
    pairs = enumerate(zip(stream.answer, alone, strict=False))
    parting = next((index for index, (ours, theirs) in pairs if ours != theirs), None)
    if parting is None:
        assert len(stream.answer) <= len(alone)
        return
    request, first = stream.request, len(stream.request.prompt_token_ids)
    possible = possible_choices(request, parting, logprobs[first + parting - 1])
    assert {stream.answer[parting], alone[parting]} <= possible, f"token {parting} is not that of the request alone"


def check_logprobs(stream: Stream, logprobs: Tensor) -> None:
    sampling = stream.request.sampling
    ours = [item for output in stream.outputs for item in output.logprobs]
    assert len(ours) == (0 if sampling.logprobs is None else len(stream.new_token_ids))
    first = len(stream.text) - len(stream.new_token_ids)
    for index, item in enumerate(ours, start=first):
        check_entry(item, logprobs[index - 1], stream.text[index])
    of_prompt = [item for output in stream.outputs for item in output.prompt_logprobs]
    # A stream that goes on was told them before.
    wants_them = sampling.prompt_logprobs is not None and stream.outputs and not stream.request.emitted_token_ids
    assert len(of_prompt) == (len(stream.request.prompt_token_ids) - 1 if wants_them else 0)
    for index, item in enumerate(of_prompt, start=1):
        check_entry(item, logprobs[index - 1], stream.text[index])


def check_entry(ours: TokenLogprobs, theirs: Tensor, token: int) -> None:
    assert abs(ours.logprob - float(theirs[token])) <= TOLERANCE
    top = torch.tensor(ours.top_logprobs)
    assert torch.allclose(theirs.topk(len(top)).values, top, rtol=0, atol=TOLERANCE)
    assert torch.allclose(theirs[list(ours.top_token_ids)], top, rtol=0, atol=TOLERANCE)


def make_checkpoints(directory: Path) -> dict[str, Checkpoint]:
    return {family: Checkpoint(directory / family, family) for family in FAMILIES}


def search(checkpoints: dict[str, Checkpoint], limits: settings, seed_number: int = 0) -> Counter[str]:
    """Check scenarios, and tell what they met. Raises AssertionError with the smallest one that fails."""
    totals: Counter[str] = Counter()

    @seed(seed_number)
    @settings(limits, deadline=None, database=None, suppress_health_check=[HealthCheck.too_slow])
    @given(scenario=scenarios(tuple(checkpoints)))
    def try_one(scenario: Scenario) -> None:
        count(totals, check(scenario, checkpoints[scenario.family]))

    try_one()
    return totals


def count(totals: Counter[str], day: Day) -> None:
    counters = day.engine.counters()
    totals["examples"] += 1
    totals["requests"] += len(day.streams)
    totals["aborted"] += counters.finished_abort
    totals["resumed"] += sum(bool(stream.request.emitted_token_ids) for stream in day.streams.values())
    totals["tokens"] += counters.generated_tokens
    totals["cached tokens"] += counters.cached_prompt_tokens
    totals["preemptions"] += counters.num_preemptions
    totals["pages from host memory"] += counters.host_restored_pages
    totals["pages from disk"] += counters.disk_restored_pages


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--examples", type=int, default=5000)
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(1)  # on a busy machine, threads of so small a model would mostly wait for each other
    start = time.monotonic()
    with tempfile.TemporaryDirectory() as directory:
        checkpoints = make_checkpoints(Path(directory))
        totals = search(checkpoints, settings(max_examples=arguments.examples), arguments.seed)
    print(f"{dict(totals)}, {time.monotonic() - start:.0f} s")


if __name__ == "__main__":
    main()
