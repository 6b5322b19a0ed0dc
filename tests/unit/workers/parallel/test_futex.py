"""Waiting for a word to change."""

import ctypes
import time
from threading import Thread

import pytest

from kvasir_workers.parallel.futex import has_futex, wait_while, wake_all

pytestmark = pytest.mark.skipif(not has_futex(), reason="needs Linux on x86-64")

DEADLINE_S = 10.0


def test_word_that_has_changed_is_not_waited_for() -> None:
    started_at = time.monotonic()
    wait_while(ctypes.c_uint32(2), 1, DEADLINE_S)
    assert time.monotonic() < started_at + DEADLINE_S


def test_wait_ends_with_its_time() -> None:
    wait_while(ctypes.c_uint32(1), 1, 0.01)


def test_all_who_wait_are_woken() -> None:
    word = ctypes.c_uint32(0)

    def wait() -> None:
        while word.value == 0:
            wait_while(word, 0, DEADLINE_S)

    threads = [Thread(target=wait) for _ in range(3)]
    for thread in threads:
        thread.start()
    word.value = 1
    wake_all(word)
    for thread in threads:
        thread.join(DEADLINE_S)
    assert not any(thread.is_alive() for thread in threads)
