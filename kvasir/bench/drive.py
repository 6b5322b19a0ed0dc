"""Sends a workload: when each conversation begins, how many run at once, and how it all ends."""

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

from kvasir.bench.client import Clock, Message, Question
from kvasir.bench.records import Failure, Record
from kvasir.bench.workloads import Conversation

Ask = Callable[[Question], Awaitable[Record]]

NOT_SENT = Failure("not sent", "an earlier turn of the conversation failed")


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """offsets_s: of each conversation from the start, ascending. max_concurrency: conversations at once, None for all
    that have begun."""

    conversations: Sequence[Conversation]
    offsets_s: Sequence[float]
    max_concurrency: int | None = None

    @property
    def num_requests(self) -> int:
        return sum(len(conversation.turns) for conversation in self.conversations)


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """records: of all requests that came to an end, in the order of the plan. client_cpu_s: CPU time of this process
    meanwhile. num_aborted: cut by the stop while they ran; num_unsent: not even begun then."""

    records: Sequence[Record]
    duration_s: float
    client_cpu_s: float = 0.0
    num_aborted: int = 0
    num_unsent: int = 0

    @property
    def was_stopped(self) -> bool:
        return bool(self.num_aborted or self.num_unsent)


class Drive:
    """One run of one plan."""

    def __init__(
        self, ask: Ask, plan: Plan, on_done: Callable[[Record], None], clock: Clock = time.perf_counter
    ) -> None:
        self._ask = ask
        self._plan = plan
        self._on_done = on_done
        self._clock = clock
        self._free = asyncio.Semaphore(plan.max_concurrency or max(1, len(plan.conversations)))
        self._records: list[list[Record]] = [[] for _ in plan.conversations]
        self._num_running = 0

    async def run(self, stop: asyncio.Event) -> Outcome:
        """Until all is answered, or stop is set: then what still runs is cut, and what is done is kept."""
        started_s, started_cpu_s = self._clock(), time.process_time()
        stopping = asyncio.create_task(stop.wait())
        sending = asyncio.create_task(self._send_all(started_s))
        try:
            await asyncio.wait((sending, stopping), return_when=asyncio.FIRST_COMPLETED)
            duration_s, client_cpu_s = self._clock() - started_s, time.process_time() - started_cpu_s
            num_aborted = self._num_running
        finally:
            for task in (sending, stopping):
                task.cancel()
            results = await asyncio.gather(sending, stopping, return_exceptions=True)
        if isinstance(results[0], Exception):
            raise results[0]
        records = [record for conversation in self._records for record in conversation]
        num_unsent = self._plan.num_requests - len(records) - num_aborted
        return Outcome(
            records=records,
            duration_s=duration_s,
            client_cpu_s=client_cpu_s,
            num_aborted=num_aborted,
            num_unsent=num_unsent,
        )

    async def _send_all(self, started_s: float) -> None:
        async with asyncio.TaskGroup() as group:
            for index, offset_s in enumerate(self._plan.offsets_s):
                if (wait_s := started_s + offset_s - self._clock()) > 0:
                    await asyncio.sleep(wait_s)
                group.create_task(self._converse(index, started_s + offset_s))

    async def _converse(self, index: int, planned_s: float) -> None:
        begun_s = self._clock()
        async with self._free:
            queue_s = self._clock() - begun_s
            messages: list[Message] = []
            num_tokens: int | None = 0
            failure: Failure | None = None
            for turn in self._plan.conversations[index].turns:
                messages.append({"role": "user", "content": turn.text})
                num_tokens = None if turn.num_tokens is None or num_tokens is None else num_tokens + turn.num_tokens
                if failure is not None:
                    record = Record(
                        planned_s=planned_s, queue_s=0, sent_s=planned_s, ended_s=planned_s, failure=NOT_SENT
                    )
                else:
                    question = Question(
                        messages=tuple(messages),
                        num_tokens=num_tokens,
                        max_tokens=turn.max_tokens,
                        planned_s=planned_s,
                        queue_s=queue_s,
                    )
                    record = await self._ask_counted(question)
                self._records[index].append(record)
                self._on_done(record)
                failure = record.failure
                messages.append({"role": "assistant", "content": record.text})
                num_tokens = None if num_tokens is None else num_tokens + record.num_output_tokens
                planned_s, queue_s = self._clock(), 0.0

    async def _ask_counted(self, question: Question) -> Record:
        self._num_running += 1
        try:
            return await self._ask(question)
        finally:
            self._num_running -= 1
