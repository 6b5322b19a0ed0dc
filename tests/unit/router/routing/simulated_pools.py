"""Two replicas in made-up time, behind a real policy: what a step takes is given, what streams then see is counted."""

import heapq
import random
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import count, pairwise

from kvasir_protocol.events import EngineCounters, HandoverCounters, ReplicaStats
from kvasir_protocol.ids import ReplicaId
from kvasir_protocol.view import Role
from kvasir_router.routing.load import ReplicaLoad
from kvasir_router.routing.policy import RequestShape, RoutingPolicy
from kvasir_router.routing.rates import RateMeter
from kvasir_workers.step_meter import StepMeter

STEP_S, SEQUENCE_S, PROMPT_TOKEN_S, HANDOVER_S = 0.9e-3, 0.1e-3, 1 / 12_000, 3e-3
"""What a step takes: itself, each sequence that decodes, each token of a prompt; about those of the demo model."""

CHUNK = 256

STATS_S = 0.5
"""From one word of a replica to the next."""


@dataclass
class Asked:
    """A request, and when its tokens came. left: tokens of its prompt that are not computed."""

    at_s: float
    prompt: int
    answer: int
    left: int
    goes_to: "Replica | None" = None
    came: list[float] = field(default_factory=list)

    @property
    def first_token_s(self) -> float:
        return self.came[0] - self.at_s

    @property
    def gaps_s(self) -> list[float]:
        return [after - before for before, after in pairwise(self.came)]


class Clockwork:
    """What is to happen, in order."""

    def __init__(self) -> None:
        self.now = 0.0
        self._coming: list[tuple[float, int, Callable[[], None]]] = []
        self._numbers = count()

    def at(self, time_s: float, act: Callable[[], None]) -> None:
        heapq.heappush(self._coming, (time_s, next(self._numbers), act))

    def run(self) -> None:
        while self._coming:
            self.now, _, act = heapq.heappop(self._coming)
            act()


class Replica:
    """Steps as an engine does: all that run get a token, and prompts in line share what is left of the chunk; short
    ones for another replica overtake."""

    def __init__(self, role: Role, index: int, clockwork: Clockwork) -> None:
        self.role, self.name = role, ReplicaId(f"{role}-{index}")
        self.num_streams = self.num_awaited = 0
        self._clockwork = clockwork
        self._running: list[Asked] = []
        self._line: list[Asked] = []
        self._is_busy = self._was_brief = False
        self._num_passed_on = 0
        self._totals = Counter[str]()
        self._steps = StepMeter()
        self._meter = RateMeter(lambda: clockwork.now)
        self._told_at = float("-inf")

    def load(self) -> ReplicaLoad:
        if self._clockwork.now - self._told_at >= STATS_S:
            self._told_at = self._clockwork.now
            self._meter.note(self._stats())
        rates = self._meter.rates()
        line = tuple(asked.prompt for asked in self._line)
        return ReplicaLoad(
            replica_id=self.name,
            role=self.role,
            num_inflight=self.num_streams,
            num_awaited=self.num_awaited,
            prefill_line=line,
            rates=rates,
        )

    def _stats(self) -> ReplicaStats:
        return ReplicaStats(
            replica_id=self.name,
            num_running=len(self._running),
            num_waiting=len(self._line),
            num_pages=1,
            num_used_pages=0,
            engine=EngineCounters(**self._totals),
            handover=HandoverCounters(pushed_requests=self._num_passed_on, exposed_s=self._num_passed_on * HANDOVER_S),
            resident_bytes=0,
            step_times=self._steps.times(),
        )

    def prefill(self, asked: Asked) -> None:
        self._line.append(asked)
        self._step()

    def decode(self, asked: Asked) -> None:
        self._running.append(asked)
        self._step()

    def _step(self) -> None:
        if self._is_busy:
            return
        if not (self._running or self._line):
            self._steps.rest()
            return
        self._is_busy = True
        self._steps.begin(self._clockwork.now, self._totals)
        budget, chunks = CHUNK - len(self._running), list[tuple[Asked, int]]()
        overtakers = [] if self._was_brief else self._overtakers()
        self._was_brief = bool(overtakers)
        for asked in overtakers or self._line:
            chunks.append((asked, min(budget, asked.left)))
            budget -= chunks[-1][1]
        num_tokens = sum(number for _, number in chunks)
        step_s = STEP_S + SEQUENCE_S * len(self._running) + PROMPT_TOKEN_S * num_tokens
        running = list(self._running)
        self._clockwork.at(self._clockwork.now + step_s, lambda: self._land(running, chunks))

    def _overtakers(self) -> list[Asked]:
        """Short prompts for another replica behind one that was begun and has most of a step left."""
        longest = max((asked.left for asked in self._line if asked.goes_to and asked.left < asked.prompt), default=0)
        waiting = [asked for asked in self._line if asked.goes_to and asked.left == asked.prompt < longest]
        return [asked for asked in waiting if asked.left <= CHUNK] if longest > CHUNK // 2 else []

    def _land(self, running: Sequence[Asked], chunks: Sequence[tuple[Asked, int]]) -> None:
        self._is_busy = False
        for asked in running:
            self._say(asked)
        for asked, number in chunks:
            asked.left -= number
            if not asked.left:
                self._line.remove(asked)
                self._say(asked)
                self._pass_on(asked)
        self._totals.update(num_steps=1, computed_prompt_tokens=sum(number for _, number in chunks))
        self._steps.end(self._clockwork.now, self._totals, has_moved=True)
        self._step()

    def _say(self, asked: Asked) -> None:
        asked.came.append(self._clockwork.now)
        self._totals["generated_tokens"] += 1
        if len(asked.came) == asked.answer:
            self._running.remove(asked)
            self.num_streams -= 1

    def _pass_on(self, asked: Asked) -> None:
        other = asked.goes_to
        if other is None:
            self._running.append(asked)
            return
        self.num_streams -= 1
        other.num_awaited -= 1
        self._num_passed_on += 1
        self._clockwork.at(self._clockwork.now + HANDOVER_S, lambda: other.decode(asked))


def simulate(roles: Sequence[Role], policy: RoutingPolicy, requests: Sequence[Asked]) -> None:
    """Have all requests answered."""
    clockwork = Clockwork()
    replicas = {replica.name: replica for replica in (Replica(r, i, clockwork) for i, r in enumerate(roles))}

    def route(asked: Asked) -> None:
        shape = RequestShape(num_prompt_tokens=asked.prompt, max_tokens=asked.answer)
        found = policy.choose(shape, [replica.load() for replica in replicas.values()])
        decode = replicas[found.decode]
        decode.num_streams += 1
        if found.prefill is None:
            decode.prefill(asked)
            return
        asked.goes_to = decode
        decode.num_awaited += 1
        replicas[found.prefill].num_streams += 1
        replicas[found.prefill].prefill(asked)

    for asked in requests:
        clockwork.at(asked.at_s, lambda asked=asked: route(asked))  # type: ignore[misc]
    clockwork.run()


@dataclass(frozen=True)
class Crowd:
    """streams_per_s begin with short prompts; every beat_s seconds burst prompts of long_prompt tokens come."""

    streams_per_s: float
    answer: int
    burst: int
    long_prompt: int
    beat_s: float

    def requests(self, seconds: float) -> list[Asked]:
        draw, found = random.Random(1), list[Asked]()
        at_s = draw.expovariate(self.streams_per_s)
        while at_s < seconds:
            found.append(Asked(at_s, 32, draw.randint(self.answer // 2, self.answer), left=32))
            at_s += draw.expovariate(self.streams_per_s)
        for beat in range(1, int(seconds / self.beat_s)):
            for _ in range(self.burst):
                found.append(Asked(beat * self.beat_s, self.long_prompt, 32, left=self.long_prompt))
        return found
