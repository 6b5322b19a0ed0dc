"""What bursts of long prompts do to streams that run, in mixed and in separate pools of as many processes.

    python -m bench.disaggregation [--seconds N] [--rounds N]

Always two replicas with the demo model, one thread each, and the router's own dispatcher in this process:

    mixed          two mixed replicas, least-loaded
    separate       one prefills, one decodes, least-loaded
    conditional    the same two; for each request the router weighs whether the decode replica prefills it itself

Some streams with short prompts run all the time (when one ends, the next begins); at a fixed beat a burst of long
prompts with short answers comes. All set-ups get the same requests. Printed: milliseconds between two tokens of the
streams that run, and until the first token of the long prompts.
"""

import argparse
import asyncio
import random
import secrets
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
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
from kvasir_router.metrics import FrontDoorMetrics
from kvasir_router.patience import Patience
from kvasir_router.routing.policy import make_policy

SETUPS: dict[str, tuple[tuple[Role, Role], RoutingPolicyName]] = {
    "mixed": (("mixed", "mixed"), "least-loaded"),
    "separate": (("prefill", "decode"), "least-loaded"),
    "conditional": (("prefill", "decode"), "conditional"),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """num_streams run; every beat_s seconds burst_size prompts of long_tokens come. warm_up_s are not counted."""

    num_streams: int
    short_tokens: int
    stream_tokens: int
    burst_size: int
    long_tokens: int
    burst_tokens: int
    beat_s: float
    seconds: float
    warm_up_s: float
    chunk: int


@dataclass(slots=True)
class Samples:
    """Milliseconds."""

    gaps: list[float] = field(default_factory=list)
    long_first: list[float] = field(default_factory=list)
    short_first: list[float] = field(default_factory=list)

    def add(self, others: "Samples") -> None:
        self.gaps += others.gaps
        self.long_first += others.long_first
        self.short_first += others.short_first


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
    configs: Sequence[ReplicaConfig], endpoints: Sequence[str], secret: bytes, policy: RoutingPolicyName
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
            policy=make_policy(policy),
            metrics=FrontDoorMetrics(CollectorRegistry(), "demo"),
            patience=Patience(),
        )
    finally:
        await fleet.close()
        context.destroy(linger=0)


class Crowd:
    """All who ask, from one seed."""

    def __init__(self, dispatcher: Dispatcher, load: Load, seed: int) -> None:
        self._dispatcher = dispatcher
        self._load = load
        self._samples = Samples()
        self._counts_from = time.perf_counter() + load.warm_up_s
        self._seed = seed

    async def run(self) -> Samples:
        """For as long as the load says."""
        tasks = [asyncio.create_task(self._stream(number)) for number in range(self._load.num_streams)]
        tasks.append(asyncio.create_task(self._bursts()))
        done, _ = await asyncio.wait(tasks, timeout=self._load.warm_up_s + self._load.seconds)
        for task in tasks:
            task.cancel()
        for task in tasks:
            with suppress(asyncio.CancelledError):
                await task
        assert not done, "whoever asks goes on until it is stopped"
        return self._samples

    async def _stream(self, number: int) -> None:
        draw = random.Random(f"{self._seed}/stream/{number}")
        while True:
            num_tokens = draw.randint(self._load.stream_tokens // 2, self._load.stream_tokens)
            asked_at = time.perf_counter()
            times = await self._ask(draw, self._load.short_tokens, num_tokens, self._samples.gaps)
            self._note(self._samples.short_first, asked_at, times)

    async def _bursts(self) -> None:
        draw = random.Random(f"{self._seed}/bursts")
        asking: set[asyncio.Task[None]] = set()
        try:
            while True:
                await asyncio.sleep(self._load.beat_s)
                for _ in range(self._load.burst_size):
                    task = asyncio.create_task(self._long(random.Random(draw.random())))
                    asking.add(task)
                    task.add_done_callback(asking.discard)
        finally:
            for task in asking:
                task.cancel()
            await asyncio.gather(*asking, return_exceptions=True)

    async def _long(self, draw: random.Random) -> None:
        asked_at = time.perf_counter()
        first = await self._ask(draw, self._load.long_tokens, self._load.burst_tokens, None)
        self._note(self._samples.long_first, asked_at, first)

    def _note(self, samples: list[float], asked_at: float, first_at: float) -> None:
        if asked_at >= self._counts_from:
            samples.append((first_at - asked_at) * 1000)

    async def _ask(
        self, draw: random.Random, num_prompt_tokens: int, num_tokens: int, gaps: list[float] | None
    ) -> float:
        """When the first token came; milliseconds between tokens go to gaps as they come."""
        sampling = SamplingParams(temperature=0, max_tokens=num_tokens, ignore_eos=True, seed=0)
        prompt = tuple(draw.choices(range(3, 2000), k=num_prompt_tokens))
        name = RequestId(secrets.token_hex(8))
        request = GenerationRequest(request_id=name, prompt_token_ids=prompt, sampling=sampling)
        first_at = last_at = 0.0
        async for output in self._dispatcher.stream(request):
            now = time.perf_counter()
            if not output.token_ids:
                continue
            if last_at and gaps is not None and last_at >= self._counts_from:
                gaps += [(now - last_at) * 1000 / len(output.token_ids)] * len(output.token_ids)
            first_at, last_at = first_at or now, now
        return first_at


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
    async with dispatcher_over(configs, endpoints, secret, policy) as dispatcher:
        return await Crowd(dispatcher, load, seed).run()


def report(samples: dict[str, Samples]) -> None:
    print(f"{'':<12} {'between tokens':^24} {'first token, long':^20} {'first token, short':^20}")
    print(f"{'ms':<12} {'p50':>7} {'p99':>8} {'tokens':>7} {'p50':>10} {'p99':>9} {'p50':>10} {'p99':>9}")
    for name, item in samples.items():
        print(
            f"{name:<12} {percentile(item.gaps, 0.5):7.1f} {percentile(item.gaps, 0.99):8.1f} {len(item.gaps):7}"
            f" {percentile(item.long_first, 0.5):10.1f} {percentile(item.long_first, 0.99):9.1f}"
            f" {percentile(item.short_first, 0.5):10.1f} {percentile(item.short_first, 0.99):9.1f}"
        )
    ours, others = samples["conditional"], [samples["mixed"], samples["separate"]]
    gap = percentile(ours.gaps, 0.99) / min(percentile(other.gaps, 0.99) for other in others)
    first = percentile(ours.long_first, 0.5) / min(percentile(other.long_first, 0.5) for other in others)
    print(f"conditional over the better of the two: p99 between tokens {gap:.2f}, median first token {first:.2f}")


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=20.0, help="counted, of each set-up in each round")
    parser.add_argument("--warm-up", type=float, default=3.0, help="seconds before that")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--streams", type=int, default=6)
    parser.add_argument("--burst", type=int, default=4, help="long prompts at once")
    parser.add_argument("--beat", type=float, default=2.0, help="seconds from burst to burst")
    parser.add_argument("--long", type=int, default=1024, help="tokens of a long prompt")
    parser.add_argument("--chunk", type=int, default=512, help="tokens of a step, in all set-ups")
    options = parser.parse_args(arguments)
    load = Load(
        num_streams=options.streams,
        short_tokens=16,
        stream_tokens=128,
        burst_size=options.burst,
        long_tokens=options.long,
        burst_tokens=4,
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
