import os
import subprocess
import sys

import pytest

from kvasir.cli import instance as module
from kvasir.cli.instance import living_instances, new_instance, remove_dead_instances


@pytest.fixture(autouse=True)
def places(tmp_path, monkeypatch):
    """Folders and shared memory of the test's own: others' servers may run on this host."""
    for name in ("TEMPORARY", "SHARED_MEMORY"):
        (tmp_path / name).mkdir()
        monkeypatch.setattr(module, name, tmp_path / name)


def segment(instance, name):
    path = module.SHARED_MEMORY / f"kvasir-{instance.id}-{name}"
    path.touch()
    return path


def test_nothing_is_left_after_the_block():
    with new_instance() as instance:
        assert instance.directory.stat().st_mode & 0o777 == 0o700
        pages = segment(instance, "decode-0-1")
    assert not instance.directory.exists()
    assert not pages.exists()


def test_another_instance_keeps_what_is_its_own():
    with new_instance() as first:
        with new_instance() as second:
            segment(second, "decode-0-1")
            kept = segment(first, "decode-0-1")
        assert kept.exists()
        assert first.directory.exists()


SERVE_AND_BE_KILLED = """
import os, signal, sys
from pathlib import Path
from kvasir.cli import instance as module
module.TEMPORARY, module.SHARED_MEMORY = map(Path, sys.argv[1:])
with module.new_instance() as dead:
    (module.SHARED_MEMORY / f"kvasir-{dead.id}-prefill-0-1").touch()
    os.kill(os.getpid(), signal.SIGKILL)
"""


def serve_and_be_killed():
    subprocess.run([sys.executable, "-c", SERVE_AND_BE_KILLED, module.TEMPORARY, module.SHARED_MEMORY])


def test_what_a_killed_server_left_is_removed_and_what_a_living_one_has_is_kept():
    serve_and_be_killed()
    (directory,), (lost,) = module.TEMPORARY.iterdir(), module.SHARED_MEMORY.iterdir()
    with new_instance() as living:
        kept = segment(living, "prefill-0-1")
        remove_dead_instances()
        assert (directory.exists(), lost.exists()) == (False, False)
        assert (living.directory.exists(), kept.exists()) == (True, True)


def test_a_server_that_lives_where_its_number_is_not_seen_from_here_is_kept():
    """As in another container, with the same folders."""
    with new_instance() as distant:
        (distant.directory / "pid").write_text(str(2**22 + 1))
        kept = segment(distant, "prefill-0-1")
        remove_dead_instances()
        assert (distant.directory.exists(), kept.exists()) == (True, True)


def test_a_folder_of_somebody_else_is_left_alone():
    stranger = module.TEMPORARY / "kvasir-notes"
    stranger.mkdir()
    remove_dead_instances()
    assert stranger.exists()


def test_a_living_server_that_has_told_its_port_is_found_by_it():
    with new_instance() as told, new_instance(), new_instance() as dead:
        told.note_port(8123)
        dead.note_port(8124)
        (dead.directory / "pid").write_text(str(2**22 + 1))
        assert list(living_instances()) == [(os.getpid(), 8123)]
