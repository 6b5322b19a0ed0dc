"""Compiles every kernel.cpp into one shared library, in a cache directory of the user."""

import fcntl
import hashlib
import logging
import os
import platform
import shutil
import subprocess
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path

import torch

_log = logging.getLogger(__name__)

_PACKAGE = Path(__file__).parents[1]
_COMPILERS = ("g++", "c++")
_FLAGS = ("-std=c++17", "-O3", "-march=native", "-fno-math-errno", "-fno-trapping-math", "-fopenmp", "-fPIC")
_BUILD_LIMIT_S = 300


class BuildError(Exception):
    """Why there is no library; the text names what is missing."""


def built_library() -> Path:
    """Where the library of these sources for this CPU is; compiled now if it is not there yet.

    Any number of processes may ask at once: one builds, and the file appears whole. Raises BuildError.
    """
    directory = _cache_directory()
    target = directory / f"{_key()}.so"
    if target.is_file():
        return target
    try:
        directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        with (directory / "lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not target.is_file():
                _build(target)
    except OSError as error:
        raise BuildError(f"{directory} can't be written ({error})") from error
    except subprocess.SubprocessError as error:
        raise BuildError(f"the compiler failed ({error})") from error
    return target


def install_library(folder: Path) -> None:
    """Take the library of these sources for this CPU from a folder, if it is there and not in the cache yet."""
    offered = folder / f"{_key()}.so"
    try:
        target = _cache_directory() / offered.name
        if not offered.is_file() or target.is_file():
            return
        target.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        with tempfile.TemporaryDirectory(dir=target.parent) as scratch:
            copy = Path(scratch) / target.name
            copy.write_bytes(offered.read_bytes())
            copy.replace(target)
    except (BuildError, OSError) as error:
        _log.warning("the CPU kernels in %s can't be used (%s)", folder, error)


def _cache_directory() -> Path:
    try:
        return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "kvasir" / "kernels"
    except RuntimeError as error:
        raise BuildError(f"there is no place for a cache ({error}); set XDG_CACHE_HOME") from error


def _key() -> str:
    """Names the sources, how they are compiled and for what. Not by what: a machine without compiler may have it."""
    digest = hashlib.sha256(repr((_FLAGS, _openmp(), platform.machine(), _cpu_features())).encode())
    for source in (*sorted(_PACKAGE.glob("*/*.h")), *_sources()):
        digest.update(source.read_bytes())
    return digest.hexdigest()[:24]


@cache
def _cpu_features() -> str:
    """What -march=native looks at: the first processor's feature list."""
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith(("flags", "Features")):
            return line
    return platform.processor()


def cpu_has(feature: str) -> bool:
    return feature in _cpu_features().split()


def _sources() -> list[Path]:
    return sorted(_PACKAGE.glob("*/kernel.cpp"))


def _openmp() -> str:
    """Torch's own OpenMP library where it brings one: with a second one there would be two sets of threads."""
    brought = sorted((Path(torch.__file__).parent / "lib").glob("libgomp*"))
    return str(brought[0]) if brought else "-fopenmp"


def _build(target: Path) -> None:
    compiler = next((path for name in _COMPILERS if (path := shutil.which(name))), None)
    if compiler is None:
        raise BuildError(f"no C++ compiler found (looked for {' and '.join(_COMPILERS)})")
    started = time.monotonic()
    with tempfile.TemporaryDirectory(dir=target.parent) as scratch:
        objects = [Path(scratch) / f"{source.parent.name}.o" for source in _sources()]
        command = [compiler, *_FLAGS, f"-I{_PACKAGE}", "-c"]
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            compilations = [[*command, str(s), "-o", str(o)] for s, o in zip(_sources(), objects, strict=True)]
            list(pool.map(_run, compilations))
        linked = Path(scratch) / target.name
        _run([compiler, "-shared", *map(str, objects), _openmp(), "-o", str(linked)])
        linked.replace(target)
    _log.info("built the CPU kernels with %s in %.1f s: %s", compiler, time.monotonic() - started, target)


def _run(command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True, timeout=_BUILD_LIMIT_S)
    if done.returncode:
        raise BuildError(f"{command[0]} failed: {done.stderr.strip()[:500]}")
