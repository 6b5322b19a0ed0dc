"""Deaths of writers, seen and unseen."""

import fcntl
import os
import secrets
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from kvasir_protocol.ids import Generation, RequestId
from kvasir_protocol.messages import BeginPush
from kvasir_workers.held_files import create_held
from kvasir_workers.kv.page_memory import SHARED_MEMORY
from kvasir_workers.kv.transfer.process_identity import own_start, process_start
from kvasir_workers.kv.transfer.writer_life import HeldFile, SeenProcess, life_of
from tests.unit.workers.kv.transfer.layouts import make_layout

HOLD = """
import sys
from pathlib import Path
from kvasir_workers.held_files import create_held
create_held(Path(sys.argv[1]))
print("holds it", flush=True)
sys.stdin.read()
"""

OWN_NUMBERS = ("unshare", "--user", "--map-current-user", "--pid", "--fork", "--kill-child=SIGKILL")
"""Runs a command that counts processes from 1 on, and is killed with its parent."""


@pytest.fixture
def held() -> Iterator[Path]:
    """Where a file may be held in shared memory."""
    path = SHARED_MEMORY / f"kvasir-test-{secrets.token_hex(4)}"
    yield path
    path.unlink(missing_ok=True)


def message(process_id: int, held_file: str = "") -> BeginPush:
    return BeginPush(
        request_id=RequestId("r"),
        generation=Generation(1),
        layout=make_layout(),
        process_id=process_id,
        process_start=own_start(),
        uses_shared_memory=True,
        held_file=held_file,
    )


def test_a_writer_whose_number_is_known_here_is_told_by_it() -> None:
    life = life_of(message(os.getpid()), process_start)
    assert isinstance(life, SeenProcess)
    assert not life.has_ended()


def test_a_writer_that_nothing_tells_of_has_no_death_to_be_seen(held: Path) -> None:
    assert life_of(message(2**22 + 1), process_start) is None
    assert life_of(message(2**22 + 1, held_file=held.name), process_start) is None


def test_a_file_that_nobody_holds_when_a_writer_begins_is_not_its_own(held: Path) -> None:
    os.close(create_held(held))
    assert HeldFile.find(held.name) is None


@pytest.mark.parametrize("name", ["\0", "..", "/", "x" * 300])
def test_a_name_that_no_file_can_have_finds_none(name: str) -> None:
    assert HeldFile.find(name) is None


def test_a_name_leads_nowhere_but_into_shared_memory(tmp_path: Path) -> None:
    descriptor = create_held(tmp_path / "held")
    assert HeldFile.find(str(tmp_path / "held")) is None
    os.close(descriptor)


def test_a_file_whose_name_is_taken_away_or_given_to_another_tells_of_its_holder_all_the_same(held: Path) -> None:
    first = create_held(held)
    life = HeldFile.find(held.name)
    assert life is not None
    held.unlink()
    assert not life.has_ended()
    second = create_held(held)
    os.close(first)
    assert life.has_ended()
    life.close()
    os.close(second)


def test_a_writer_that_counts_processes_from_one_is_seen_to_be_killed(held: Path) -> None:
    if subprocess.run([*OWN_NUMBERS, "true"], capture_output=True).returncode:
        pytest.skip("no namespaces can be made here")
    command = [*OWN_NUMBERS, sys.executable, "-c", HOLD, str(held)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as writer:
        assert writer.stdout is not None
        assert writer.stdout.readline() == "holds it\n"
        life = life_of(message(2**22 + 1, held_file=held.name), process_start)
        assert life is not None and not life.has_ended()
        writer.kill()
        _wait_until_nobody_holds(held)
    assert life.has_ended()
    life.close()


def _wait_until_nobody_holds(path: Path) -> None:
    with path.open() as file:
        fcntl.flock(file, fcntl.LOCK_EX)
