"""The loaded library, and its functions by dtype."""

import ctypes
import logging
from collections.abc import Callable
from functools import cache
from pathlib import Path

import torch

from kvasir_kernels.native.build import BuildError, built_library

_log = logging.getLogger(__name__)

_SUFFIXES = {torch.float32: "float32", torch.bfloat16: "bfloat16", torch.uint8: "bytes"}
"""In the names of functions: what they compute in; bytes are only moved."""

_TYPES: dict[str, type[ctypes.c_void_p | ctypes.c_int64 | ctypes.c_float]] = {
    "p": ctypes.c_void_p,
    "i": ctypes.c_int64,
    "f": ctypes.c_float,
}

Argument = int | float | None


class KernelLibrary:
    """The functions of one library file; each takes the number of threads that it may use last."""

    def __init__(self, path: Path) -> None:
        self._library = ctypes.CDLL(str(path))
        self.functions: dict[tuple[str, torch.dtype], Callable[..., None]] = {}

    def load(self, name: str, dtype: torch.dtype, signature: str) -> Callable[..., None]:
        """Put a function among `functions`. signature: a letter per argument, p: address, i: integer, f: float."""
        found = self._library[f"kvasir_{name}_{_SUFFIXES[dtype]}"]
        found.argtypes = [_TYPES[letter] for letter in signature + "i"]
        found.restype = None
        self.functions[name, dtype] = found
        return found


class Kernel:
    """A function by name; the caller answers for the memory that its addresses name."""

    def __init__(self, name: str, signature: str) -> None:
        self._name, self._signature = name, signature

    def __call__(self, library: KernelLibrary, dtype: torch.dtype, *arguments: Argument) -> None:
        function = library.functions.get((self._name, dtype)) or library.load(self._name, dtype, self._signature)
        function(*arguments, torch.get_num_threads())


def takes(dtype: torch.dtype) -> bool:
    """Whether kernels compute in it."""
    return dtype.is_floating_point and dtype in _SUFFIXES


@cache
def load_library() -> KernelLibrary | None:
    """The library for this machine, built if need be; None, said once in the log, where that can't be done."""
    try:
        return KernelLibrary(built_library())
    except (BuildError, OSError) as error:
        _log.warning("no CPU kernels: %s; torch's own operators do their work, more slowly", error)
        return None
