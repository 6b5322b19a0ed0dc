"""Conversations against a server that the test plays itself."""

import asyncio
from itertools import count

import pytest

from kvasir.bench.drive import Drive, Plan
from kvasir.bench.records import Failure, Record
from kvasir.bench.workloads import Conversation, Turn

pytestmark = pytest.mark.anyio


class Server:
    """Answers "a0", "a1", …; the text in `refuses` fails, and the one in `holds` never ends."""

    def __init__(self, refuses="", holds=""):
        self.questions = []
        self.num_running = self.most_running = 0
        self.is_holding = asyncio.Event()
        self._refuses, self._holds = refuses, holds

    async def ask(self, question):
        number = len(self.questions)
        self.questions.append(question)
        self.num_running += 1
        self.most_running = max(self.most_running, self.num_running)
        try:
            if question.messages[-1]["content"] == self._holds:
                self.is_holding.set()
                await asyncio.Event().wait()
            for _ in range(3):
                await asyncio.sleep(0)
        finally:
            self.num_running -= 1
        has_failed = question.messages[-1]["content"] == self._refuses
        return Record(
            planned_s=question.planned_s,
            queue_s=question.queue_s,
            sent_s=0.0,
            ended_s=1.0,
            num_output_tokens=5,
            text=f"a{number}",
            failure=Failure("HTTP 503") if has_failed else None,
        )


def talk(*texts):
    return Conversation(tuple(Turn(text, 2, 5) for text in texts))


def plan(*conversations, max_concurrency=None):
    return Plan(conversations=conversations, offsets_s=[0.0] * len(conversations), max_concurrency=max_concurrency)


async def run(server, plan, stop=None):
    told = []
    outcome = await Drive(server.ask, plan, told.append).run(stop or asyncio.Event())
    assert sorted(map(id, told)) == sorted(map(id, outcome.records))
    return outcome


async def test_answers_are_fed_back_turn_by_turn():
    server = Server()
    outcome = await run(server, plan(talk("q0", "q1", "q2")))
    assert [message["content"] for message in server.questions[2].messages] == ["q0", "a0", "q1", "a1", "q2"]
    assert [message["role"] for message in server.questions[1].messages] == ["user", "assistant", "user"]
    assert [question.num_tokens for question in server.questions] == [2, 2 + 5 + 2, 2 + 5 + 2 + 5 + 2]
    assert len(outcome.records) == 3
    assert not outcome.was_stopped


async def test_no_more_run_at_once_than_allowed():
    server = Server()
    await run(server, plan(*[talk("q")] * 9, max_concurrency=3))
    assert server.most_running == 3
    server = Server()
    await run(server, plan(*[talk("q")] * 9))
    assert server.most_running == 9


async def test_the_wait_for_a_place_is_told():
    # Every look at this clock takes a second.
    drive = Drive(Server().ask, plan(talk("q"), talk("q"), max_concurrency=1), lambda record: None, count().__next__)
    outcome = await drive.run(asyncio.Event())
    assert outcome.records[0].queue_s == 1
    assert outcome.records[1].queue_s > 1


async def test_turns_after_a_failed_one_fail_unsent():
    server = Server(refuses="q1")
    outcome = await run(server, plan(talk("q0", "q1", "q2", "q3")))
    assert [record.failure and record.failure.cause for record in outcome.records] == [
        None, "HTTP 503", "not sent", "not sent",
    ]  # fmt: skip
    assert len(server.questions) == 2


async def test_stopping_keeps_what_is_done_and_counts_the_rest():
    server, stop = Server(holds="hold"), asyncio.Event()
    running = asyncio.create_task(
        run(server, plan(talk("q0"), talk("hold", "q1"), talk("q2"), max_concurrency=1), stop)
    )
    await server.is_holding.wait()
    stop.set()
    outcome = await running
    assert (len(outcome.records), outcome.num_aborted, outcome.num_unsent) == (1, 1, 2)
    assert outcome.was_stopped
    assert server.num_running == 0


async def test_requests_leave_in_the_order_of_the_plan():
    server = Server()
    conversations = [talk("q0"), talk("q1"), talk("q2")]
    await run(server, Plan(conversations=conversations, offsets_s=[0.0, 0.001, 0.002]))
    assert [question.messages[0]["content"] for question in server.questions] == ["q0", "q1", "q2"]
    planned = [question.planned_s for question in server.questions]
    assert [later - planned[0] for later in planned] == pytest.approx([0.0, 0.001, 0.002])


async def test_a_fault_of_our_own_is_raised():
    async def ask(question):
        raise RuntimeError("a bug")

    with pytest.raises(ExceptionGroup, match="unhandled"):
        await Drive(ask, plan(talk("q")), lambda record: None).run(asyncio.Event())
