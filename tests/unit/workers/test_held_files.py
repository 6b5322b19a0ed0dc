"""Files of the living and of the dead."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from kvasir_workers.held_files import create_held, is_abandoned

HOLD_AND_BE_KILLED = """
import os, signal, sys
from pathlib import Path
from kvasir_workers.held_files import create_held
create_held(Path(sys.argv[1]))
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_file_is_not_abandoned_until_its_maker_lets_go(tmp_path: Path) -> None:
    descriptor = create_held(tmp_path / "file")
    assert not is_abandoned(tmp_path / "file")
    os.close(descriptor)
    assert is_abandoned(tmp_path / "file")


def test_maker_that_was_killed_holds_nothing(tmp_path: Path) -> None:
    subprocess.run([sys.executable, "-c", HOLD_AND_BE_KILLED, str(tmp_path / "file")])
    assert is_abandoned(tmp_path / "file")


def test_looking_at_it_does_not_hold_it(tmp_path: Path) -> None:
    os.close(create_held(tmp_path / "file"))
    assert is_abandoned(tmp_path / "file")
    assert is_abandoned(tmp_path / "file")


def test_new_file_is_its_makers_alone_and_leaves_no_draft(tmp_path: Path) -> None:
    os.close(create_held(tmp_path / "file"))
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
    assert (tmp_path / "file").stat().st_mode & 0o077 == 0


def test_name_in_use_is_refused_and_leaves_no_draft(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(FileExistsError):
        create_held(tmp_path / "file")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_what_is_not_there_or_only_a_link_is_not_abandoned(tmp_path: Path) -> None:
    os.close(create_held(tmp_path / "file"))
    (tmp_path / "link").symlink_to(tmp_path / "file")
    assert not is_abandoned(tmp_path / "link")
    assert not is_abandoned(tmp_path / "nothing")


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file away")
def test_what_is_anothers_is_not_abandoned(tmp_path: Path) -> None:
    os.close(create_held(tmp_path / "file"))
    os.chown(tmp_path / "file", 65534, -1)
    assert not is_abandoned(tmp_path / "file")
