"""What this client can do at the most: with one core for itself, against a server that answers at once.

By its CPU time, so that neither the stub server nor whoever else is on the host counts. The client is one thread.
"""

import asyncio
import statistics
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from kvasir.bench.client import LoadClient, Target
from kvasir.bench.drive import Drive, Outcome, Plan
from kvasir.bench.http_client import Origin
from kvasir.bench.records import Record
from kvasir.bench.workloads import Conversation, Turn
from kvasir_protocol.errors import ServiceUnavailable

MAX_CONCURRENCY = 256
"""More connections than that change the figures little."""

NUM_SINGLE = 200

MIN_STREAMED_TOKENS = 20_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Ceiling:
    """requests_per_s: of one token. tokens_per_s: in answers as long as the load's. added_latency_ms: the median
    time to the first token of a request alone, which is all the client's, the stub's and the loopback's."""

    requests_per_s: float
    tokens_per_s: float
    added_latency_ms: float

    def share(self, request_throughput: float, output_throughput: float) -> float:
        """How much of it a run used, by whichever is nearer: at 1 the client would have measured itself."""
        return max(request_throughput / self.requests_per_s, output_throughput / self.tokens_per_s)


@contextmanager
def stub_process() -> Iterator[str]:
    """The URL of a stub server in a process of its own, so that it takes no time of the client's."""
    command = [sys.executable, "-m", "kvasir.bench.stub_server"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True) as process:
        assert process.stdin is not None and process.stdout is not None
        url = process.stdout.readline().decode().strip()
        try:
            if not url:
                raise ServiceUnavailable("the stub server for --ceiling did not start")
            yield url
        finally:
            process.stdin.close()


async def measure_ceiling(url: str, example: Conversation, concurrency: int, *, is_chat: bool) -> Ceiling:
    """url: of a stub server. example: one of the load's conversations, whose first turn is asked again and again."""
    concurrency = min(concurrency, MAX_CONCURRENCY)
    turn = example.turns[0]
    target = Target(origin=Origin.from_url(url), model="stub", is_chat=is_chat)
    one_token = Conversation((Turn(turn.text, 1, 1),))
    whole = Conversation((Turn(turn.text, 1, turn.max_tokens),))
    num_whole = max(4 * concurrency, MIN_STREAMED_TOKENS // turn.max_tokens)
    await _run(target, [one_token] * (4 * concurrency), concurrency)
    single = await _run(target, [one_token] * NUM_SINGLE, 1)
    short = await _run(target, [one_token] * max(16 * concurrency, 4 * NUM_SINGLE), concurrency)
    streams = await _run(target, [whole] * num_whole, concurrency)
    return Ceiling(
        requests_per_s=len(short.records) / short.client_cpu_s,
        tokens_per_s=sum(record.num_output_tokens for record in streams.records) / streams.client_cpu_s,
        added_latency_ms=1000 * statistics.median(record.ttft_s for record in single.records),
    )


async def _run(target: Target, conversations: Sequence[Conversation], concurrency: int) -> Outcome:
    client = LoadClient(target)
    plan = Plan(conversations=conversations, offsets_s=[0.0] * len(conversations), max_concurrency=concurrency)
    try:
        outcome = await Drive(client.ask, plan, _ignore).run(asyncio.Event())
    finally:
        client.close()
    if failures := [record.failure for record in outcome.records if record.failure is not None]:
        raise ServiceUnavailable(f"the stub server failed: {failures[0]}")
    return outcome


def _ignore(record: Record) -> None:
    """Nobody watches these."""
