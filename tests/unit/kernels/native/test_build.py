"""How the library comes to be, with compilers made up here: built once, and what is said where nothing can be."""

import logging
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from kvasir_kernels.native.build import BuildError, built_library
from kvasir_kernels.native.library import load_library

COMPILER = """#!/bin/sh
while [ $# -gt 0 ]; do
    [ "$1" != -o ] || { shift; echo "$1" >>"%s"; : >"$1"; }
    shift
done
"""


@pytest.fixture
def programs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The only folder with programs; the cache is empty."""
    directory = tmp_path / "programs"
    directory.mkdir()
    monkeypatch.setenv("PATH", str(directory))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return directory


def install(programs: Path, script: str) -> None:
    compiler = programs / "g++"
    compiler.write_text(script)
    compiler.chmod(0o755)


@pytest.fixture
def written(programs: Path, tmp_path: Path) -> Path:
    """What the compiler wrote, a line for each file."""
    log = tmp_path / "written"
    install(programs, COMPILER % log)
    return log


def num_links(written: Path) -> int:
    return sum(line.endswith(".so") for line in written.read_text().splitlines())


def test_library_is_built_once(written: Path) -> None:
    first = built_library()
    assert first.is_file()
    assert built_library() == first
    assert num_links(written) == 1


def test_many_at_once_build_it_once(written: Path) -> None:
    with ThreadPoolExecutor(4) as pool:
        paths = list(pool.map(lambda _: built_library(), range(4)))
    assert len(set(paths)) == 1
    assert num_links(written) == 1


def test_a_built_library_needs_no_compiler(programs: Path, written: Path) -> None:
    path = built_library()
    (programs / "g++").unlink()
    assert built_library() == path


def test_nothing_but_the_library_stays_in_the_cache(written: Path) -> None:
    path = built_library()
    assert {item.name for item in path.parent.iterdir()} == {path.name, "lock"}


def test_missing_compiler_is_named(programs: Path) -> None:
    with pytest.raises(BuildError, match=r"no C\+\+ compiler"):
        built_library()


def test_compilers_complaint_is_passed_on(programs: Path) -> None:
    install(programs, "#!/bin/sh\necho unknown option -march=native >&2\nexit 1\n")
    with pytest.raises(BuildError, match="unknown option -march=native"):
        built_library()


def test_cache_that_cannot_be_written_is_named(written: Path, tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("a file where a directory should be")
    with pytest.raises(BuildError, match="cache"):
        built_library()


def test_damaged_library_is_said_and_not_used(written: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        assert load_library.__wrapped__() is None
    assert "torch's own operators" in caplog.text
