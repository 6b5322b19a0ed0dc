"""Work handed to a thread that waits on sockets."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import zmq

from kvasir_workers.mailbox import Mailbox

DEADLINE_MS = 10_000


@pytest.fixture
def context() -> Iterator[zmq.Context[Any]]:
    made: zmq.Context[Any] = zmq.Context()
    yield made
    made.destroy(linger=0)


@pytest.fixture
def mailbox(context: zmq.Context[Any]) -> Iterator[Mailbox]:
    made = Mailbox(context)
    yield made
    made.close()


def test_posted_work_rings_and_runs_in_order(mailbox: Mailbox) -> None:
    done: list[int] = []
    for i in range(5):
        mailbox.post(lambda i=i: done.append(i))
    assert mailbox.socket.poll(DEADLINE_MS)
    mailbox.run_posted()
    assert done == list(range(5))


def test_one_ring_is_enough_for_all_that_waits(mailbox: Mailbox) -> None:
    for _ in range(5):
        mailbox.post(lambda: None)
    mailbox.run_posted()
    assert not mailbox.socket.poll(0)


def test_work_posted_by_work_rings_again(mailbox: Mailbox) -> None:
    done: list[str] = []
    mailbox.post(lambda: mailbox.post(lambda: done.append("second")))
    mailbox.run_posted()
    assert (done, bool(mailbox.socket.poll(DEADLINE_MS))) == ([], True)
    mailbox.run_posted()
    assert done == ["second"]


def test_many_threads_may_post(mailbox: Mailbox) -> None:
    done: list[int] = []
    with ThreadPoolExecutor(8) as pool:
        for i in range(400):
            pool.submit(mailbox.post, lambda i=i: done.append(i))
    while mailbox.socket.poll(0):
        mailbox.run_posted()
    assert sorted(done) == list(range(400))


def test_work_posted_after_the_end_is_dropped(mailbox: Mailbox) -> None:
    mailbox.close()
    mailbox.post(lambda: pytest.fail("ran after the end"))


def test_two_mailboxes_of_one_context_do_not_meet(context: zmq.Context[Any], mailbox: Mailbox) -> None:
    other = Mailbox(context)
    other.post(lambda: None)
    assert not mailbox.socket.poll(50)
    other.close()
