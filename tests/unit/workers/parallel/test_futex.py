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


def test_whoever_waits_is_woken() -> None:
    """The word stays what it is: nothing else ends the wait."""
    word = ctypes.c_uint32(0)
    threads = [Thread(target=wait_while, args=(word, 0, 1e6), daemon=True) for _ in range(3)]
    for thread in threads:
        thread.start()
    give_up_at = time.monotonic() + DEADLINE_S
    while any(thread.is_alive() for thread in threads) and time.monotonic() < give_up_at:
        wake_all(word)  # again and again: some may only be about to wait
    assert not any(thread.is_alive() for thread in threads)
