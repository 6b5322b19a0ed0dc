"""What bursts of long prompts do to streams that run, in mixed and in separate pools of as many processes.

    python -m bench.disaggregation [--seconds N] [--rounds N]

Always two replicas with the demo model, one thread each, and the router's own dispatcher in this process:

    mixed          two mixed replicas, least-loaded
    separate       one prefills, one decodes, least-loaded
    conditional    the same two; for each request the router weighs who computes its prompt

Streams with short prompts begin at random moments; at a fixed beat a burst of long prompts with short answers comes.
When each of them comes is drawn beforehand, and is the same in all set-ups however fast these answer, so that all do
the same work. Printed: milliseconds between two tokens of the streams, and until the first token of either kind; and
which part of the prompts the decode replica computed.
"""

import argparse
import asyncio
import math
import random
import secrets
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import zmq.asyncio
from prometheus_client import CollectorRegistry

from bench.figures import percentile
from bench.replicas import replica_processes
from kvasir.demo import demo_model_path
from kvasir_protocol.config import EngineConfig, HandoverConfig, ModelConfig, ReplicaConfig, RoutingPolicyName
from kvasir_protocol.ids import ReplicaId, RequestId
from kvasir_protocol.request import GenerationRequest, SamplingParams
from kvasir_protocol.sockets import load_secret
from kvasir_protocol.view import ClusterView, ReplicaAddress, Role
from kvasir_router.dispatch import Dispatcher
from kvasir_router.fleet import Fleet
from kvasir_router.links import LinkSettings, ReplicaLink
from kvasir_router.metrics import FrontDoorMetrics, MetricFamilies
from kvasir_router.patience import Patience
from kvasir_router.routing.load import ReplicaLoad
from kvasir_router.routing.policy import RequestShape, Route, RoutingPolicy, make_policy

SETUPS: dict[str, tuple[tuple[Role, Role], RoutingPolicyName]] = {
    "mixed": (("mixed", "mixed"), "least-loaded"),
    "separate": (("prefill", "decode"), "least-loaded"),
    "conditional": (("prefill", "decode"), "conditional"),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """streams_per_s begin; every beat_s seconds burst_size long prompts come, for warm_up_s, which are not counted,
    and seconds more. Tokens of prompts and answers: of streams half as many to all of them, of the others so many."""

    streams_per_s: float
    stream_prompt: int
    stream_answer: int
    burst_size: int
    long_prompt: int
    long_answer: int
    beat_s: float
    seconds: float
    warm_up_s: float
    chunk: int


@dataclass(frozen=True, slots=True)
class Arrival:
    """A request that comes at_s seconds after the beginning."""

    at_s: float
    prompt: tuple[int, ...]
    num_answer_tokens: int
    is_long: bool


def arrivals(load: Load, seed: int) -> list[Arrival]:
    """In the order in which they come."""
    draw, end_s = random.Random(seed), load.warm_up_s + load.seconds
    drawn: list[Arrival] = []
    at_s = draw.expovariate(load.streams_per_s)
    while at_s < end_s:
        num_tokens = draw.randint(load.stream_answer // 2, load.stream_answer)
        drawn.append(Arrival(at_s, _prompt(draw, load.stream_prompt), num_tokens, is_long=False))
        at_s += draw.expovariate(load.streams_per_s)
    for beat in range(1, math.ceil(end_s / load.beat_s)):
        for _ in range(load.burst_size):
            prompt = _prompt(draw, load.long_prompt)
            drawn.append(Arrival(beat * load.beat_s, prompt, load.long_answer, is_long=True))
    return sorted(drawn, key=lambda arrival: arrival.at_s)


def _prompt(draw: random.Random, num_tokens: int) -> tuple[int, ...]:
    return tuple(draw.choices(range(3, 2000), k=num_tokens))


@dataclass(slots=True)
class Samples:
    """Milliseconds; and how many prompts there were, and how many the decode replica computed, long ones and others."""

    gaps: list[float] = field(default_factory=list)
    long_first: list[float] = field(default_factory=list)
    short_first: list[float] = field(default_factory=list)
    num_routed: Counter[bool] = field(default_factory=Counter)
    num_at_decode: Counter[bool] = field(default_factory=Counter)

    def add(self, others: "Samples") -> None:
        self.gaps += others.gaps
        self.long_first += others.long_first
        self.short_first += others.short_first
        self.num_routed += others.num_routed
        self.num_at_decode += others.num_at_decode

    def share_at_decode(self, *, is_long: bool) -> float:
        return self.num_at_decode[is_long] / max(1, self.num_routed[is_long])


class CountedPolicy:
    """Another policy, whose routes are counted."""

    def __init__(self, policy: RoutingPolicy, samples: Samples, long_prompt: int) -> None:
        self._policy = policy
        self._samples = samples
        self._long_prompt = long_prompt

    def choose(self, shape: RequestShape, candidates: Sequence[ReplicaLoad]) -> Route:
        route = self._policy.choose(shape, candidates)
        is_long = shape.num_prompt_tokens >= self._long_prompt
        self._samples.num_routed[is_long] += 1
        self._samples.num_at_decode[is_long] += route.prefill is None and route.decode.startswith("decode")
        return route


def config_of(role: Role, index: int, prefix: str, chunk: int) -> ReplicaConfig:
    return ReplicaConfig(
        replica_id=ReplicaId(f"{role}-{index}"),
        role=role,
        model=ModelConfig(path=str(demo_model_path()), served_name="demo"),
        engine=EngineConfig(
            device="cpu", num_threads=1, kv_cache_bytes=256 * 2**20, max_num_seqs=64, max_num_batched_tokens=chunk
        ),
        handover=HandoverConfig(),
        segment_prefix=prefix,
    )


@asynccontextmanager
async def dispatcher_over(
    configs: Sequence[ReplicaConfig], endpoints: Sequence[str], secret: bytes, policy: RoutingPolicy
) -> AsyncIterator[Dispatcher]:
    context = zmq.asyncio.Context()
    settings = LinkSettings(context, secret, "bench", Patience().ping_interval_s)
    fleet = Fleet(lambda address, on_change: ReplicaLink(address, settings, on_change))
    addresses = tuple(
        ReplicaAddress(replica_id=config.replica_id, role=config.role, endpoint=endpoint)
        for config, endpoint in zip(configs, endpoints, strict=True)
    )
    fleet.apply(ClusterView(version=1, replicas=addresses))
    while len(fleet.live()) < len(addresses):
        await fleet.wait_for_change()
    try:
        yield Dispatcher(
            fleet=fleet,
            policy=policy,
            metrics=FrontDoorMetrics(MetricFamilies(CollectorRegistry()), "demo"),
            patience=Patience(),
        )
    finally:
        await fleet.close()
        context.destroy(linger=0)


class Crowd:
    """All who ask."""

    def __init__(self, dispatcher: Dispatcher, samples: Samples, counts_from_s: float) -> None:
        self._dispatcher = dispatcher
        self._samples = samples
        self._counts_from_s = counts_from_s

    async def run(self, coming: Sequence[Arrival]) -> None:
        """Until the last has its answer."""
        started_at = time.perf_counter()
        async with asyncio.TaskGroup() as asking:
            for arrival in coming:
                await asyncio.sleep(started_at + arrival.at_s - time.perf_counter())
                asking.create_task(self._ask(arrival))

    async def _ask(self, arrival: Arrival) -> None:
        asked_at = last_at = time.perf_counter()
        sampling = SamplingParams(temperature=0, max_tokens=arrival.num_answer_tokens, ignore_eos=True, seed=0)
        name = RequestId(secrets.token_hex(8))
        request = GenerationRequest(request_id=name, prompt_token_ids=arrival.prompt, sampling=sampling)
        first_ms, gaps = 0.0, []
        async for output in self._dispatcher.stream(request):
            now = time.perf_counter()
            if not output.token_ids:
                continue
            if not first_ms:
                first_ms = (now - asked_at) * 1000
            else:
                gaps += [(now - last_at) * 1000 / len(output.token_ids)] * len(output.token_ids)
            last_at = now
        if arrival.at_s < self._counts_from_s:
            return
        if arrival.is_long:
            self._samples.long_first.append(first_ms)
        else:
            self._samples.short_first.append(first_ms)
            self._samples.gaps += gaps


def measure(name: str, load: Load, seed: int) -> Samples:
    roles, policy = SETUPS[name]
    prefix = f"kvasir-bench-{secrets.token_hex(4)}"
    configs = [config_of(role, index, prefix, load.chunk) for index, role in enumerate(roles)]
    with replica_processes(configs) as (endpoints, secret_file):
        return asyncio.run(_measure(configs, endpoints, load_secret(secret_file), policy, load, seed))


async def _measure(
    configs: Sequence[ReplicaConfig],
    endpoints: Sequence[str],
    secret: bytes,
    policy: RoutingPolicyName,
    load: Load,
    seed: int,
) -> Samples:
    samples = Samples()
    counted = CountedPolicy(make_policy(policy), samples, load.long_prompt)
    async with dispatcher_over(configs, endpoints, secret, counted) as dispatcher:
        await Crowd(dispatcher, samples, load.warm_up_s).run(arrivals(load, seed))
    return samples


FIGURES: dict[str, Callable[[Samples], float]] = {
    "ITL p50": lambda item: percentile(item.gaps, 0.5),
    "ITL p99": lambda item: percentile(item.gaps, 0.99),
    "TTFT long p50": lambda item: percentile(item.long_first, 0.5),
    "TTFT long p99": lambda item: percentile(item.long_first, 0.99),
    "TTFT short p50": lambda item: percentile(item.short_first, 0.5),
    "TTFT short p99": lambda item: percentile(item.short_first, 0.99),
}


def report(samples: dict[str, Samples]) -> None:
    print(f"{'ms':<12}" + "".join(f"{name:>16}" for name in FIGURES) + f"{'at decode: long':>17}{'short':>7}")
    for name, item in samples.items():
        shares = f"{item.share_at_decode(is_long=True):17.0%}{item.share_at_decode(is_long=False):7.0%}"
        print(f"{name:<12}" + "".join(f"{figure(item):16.1f}" for figure in FIGURES.values()) + shares)
    ours = samples["conditional"]
    for other in ("mixed", "separate"):
        ratios = "".join(f"{figure(ours) / figure(samples[other]):16.2f}" for figure in FIGURES.values())
        print(f"conditional, of {other}:\n{'':<12}{ratios}")


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=20.0, help="counted, of each set-up in each round")
    parser.add_argument("--warm-up", type=float, default=3.0, help="seconds before that")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--streams", type=float, default=8.0, help="that begin in a second")
    parser.add_argument("--answer", type=int, default=384, help="tokens of a stream, at the most")
    parser.add_argument("--burst", type=int, default=4, help="long prompts at once")
    parser.add_argument("--beat", type=float, default=2.0, help="seconds from burst to burst")
    parser.add_argument("--long", type=int, default=1024, help="tokens of a long prompt")
    parser.add_argument("--chunk", type=int, default=512, help="tokens of a step, in all set-ups")
    options = parser.parse_args(arguments)
    load = Load(
        streams_per_s=options.streams,
        stream_prompt=32,
        stream_answer=options.answer,
        burst_size=options.burst,
        long_prompt=options.long,
        long_answer=32,
        beat_s=options.beat,
        seconds=options.seconds,
        warm_up_s=options.warm_up,
        chunk=options.chunk,
    )
    samples = {name: Samples() for name in SETUPS}
    for seed in range(options.rounds):
        for name, total in samples.items():
            total.add(measure(name, load, seed))
    report(samples)


if __name__ == "__main__":
    main()
