"""Which process it is."""

import errno
import os
import subprocess

from kvasir_workers.kv.transfer.process_identity import is_running, own_start, process_start


def test_living_process_began_at_some_time_and_keeps_it() -> None:
    assert process_start(os.getpid()) == process_start(os.getpid())
    assert process_start(os.getpid()) is not None


def test_child_began_later() -> None:
    with subprocess.Popen(["cat"], stdin=subprocess.PIPE) as child:
        mine, others = process_start(os.getpid()), process_start(child.pid)
        assert mine is not None and others is not None and others > mine


def test_number_of_no_process_began_never() -> None:
    assert process_start(2**22 + 1) is None


def test_dead_process_that_nobody_has_collected_is_dead() -> None:
    child = subprocess.Popen(["true"])
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
    try:
        assert process_start(child.pid) is None
    finally:
        child.wait()


def test_process_runs_if_both_its_number_and_its_beginning_are_right() -> None:
    assert is_running(os.getpid(), own_start()) is True
    assert is_running(os.getpid(), own_start() + 1) is False
    assert is_running(2**22 + 1, own_start()) is False


def test_what_can_not_be_found_out_is_no_death() -> None:
    def look_up(process_id: int) -> int | None:
        raise OSError(errno.EMFILE, "too many open files")

    assert is_running(os.getpid(), own_start(), look_up) is None
