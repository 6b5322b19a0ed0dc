"""One measured run against a server: warm-up, load, summary."""

import asyncio
import gc
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

from kvasir.bench.arrivals import Traffic
from kvasir.bench.client import LoadClient, Target
from kvasir.bench.drive import Drive, Outcome, Plan
from kvasir.bench.metrics import Wanted, details, summarize
from kvasir.bench.records import Record
from kvasir.bench.workloads import Conversation, Lengths, TextSource, random_prompts
from kvasir_protocol.errors import ServiceUnavailable

WARM_UP_SEED = 2**64 + 1
"""Not that of any load: what warms up must not lie in the cache afterwards. (-1 would do as 1 does: the generator is
seeded with the absolute value.)"""


class Progress(Protocol):
    """Told of every request that came to an end."""

    def advance(self, record: Record) -> None: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class ServeBench:
    """warm_up: sent before, and not counted."""

    target: Target
    conversations: Sequence[Conversation]
    traffic: Traffic
    seed: int = 0
    max_concurrency: int | None = None
    warm_up: Sequence[Conversation] = ()

    def plan(self) -> Plan:
        """Raises AssertionError for a workload of nothing."""
        assert self.conversations, "a workload has at least one conversation"
        offsets = [conversation.at_s for conversation in self.conversations]
        times = [offset for offset in offsets if offset is not None]
        if len(times) < len(offsets):
            times = self.traffic.offsets_s(len(offsets), self.seed)
        return Plan(conversations=self.conversations, offsets_s=times, max_concurrency=self.max_concurrency)

    async def run(self, stop: asyncio.Event, progress: Progress) -> Outcome:
        """Raises ServiceUnavailable if a warm-up request fails: then nothing would be worth measuring."""
        client = LoadClient(self.target)
        try:
            await self._warm_up(client, stop)
            # Prompts and plan live to the end: looking through them again and again would only make pauses.
            gc.collect()
            gc.freeze()
            return await Drive(client.ask, self.plan(), progress.advance).run(stop)
        finally:
            gc.unfreeze()
            client.close()

    async def _warm_up(self, client: LoadClient, stop: asyncio.Event) -> None:
        plan = Plan(
            conversations=self.warm_up, offsets_s=[0.0] * len(self.warm_up), max_concurrency=self.max_concurrency
        )
        outcome = await Drive(client.ask, plan, _ignore).run(stop)
        for record in outcome.records:
            if record.failure is not None:
                raise ServiceUnavailable(f"a warm-up request failed: {record.failure}")


def _ignore(record: Record) -> None:
    """Warm-up requests are not counted."""


def make_warm_up(conversations: Sequence[Conversation], num_requests: int, source: TextSource) -> list[Conversation]:
    """Prompts and answers as long as the first of the load, and with nothing in common with it."""
    first = conversations[0].turns[0]
    lengths = Lengths(input_len=first.num_tokens or len(first.text.split()), output_len=first.max_tokens)
    return random_prompts(num_requests, lengths, source, WARM_UP_SEED)


def count_answers(outcome: Outcome, source: TextSource) -> Outcome:
    """The same, where the source can count tokens also of servers that told no usage. Takes no time of the run."""

    def counted(record: Record) -> Record:
        if record.failure is not None or record.counted_by == "usage":
            return record
        num_tokens = source.count_answer(record.text)
        if num_tokens is None:
            return record
        return replace(record, num_output_tokens=num_tokens, counted_by="tokenizer")

    return replace(outcome, records=[counted(record) for record in outcome.records])


def result_of(outcome: Outcome, wanted: Wanted) -> dict[str, Any]:
    """Summary and details of a run that may have been stopped."""
    return {
        **summarize(outcome.records, outcome.duration_s, wanted),
        "client_cpu_share": outcome.client_cpu_s / outcome.duration_s if outcome.duration_s > 0 else 0.0,
        "interrupted": outcome.was_stopped,
        "aborted": outcome.num_aborted,
        "not_sent": outcome.num_unsent,
        **details(outcome.records),
    }
