"""Waiting for a word in shared memory to change, without spinning (futex(2), Linux)."""

import ctypes
import os
import platform

_SYSCALL = 202
_WAIT, _WAKE = 0, 1
_EVERYBODY = 2**31 - 1

_libc = ctypes.CDLL(None, use_errno=True)


class _Timespec(ctypes.Structure):
    _fields_ = (("seconds", ctypes.c_long), ("nanoseconds", ctypes.c_long))


def has_futex() -> bool:
    """Whether it can be used here, and stores become visible to other processes in order: on Linux on x86-64."""
    return os.name == "posix" and platform.system() == "Linux" and platform.machine() == "x86_64"


def wait_while(word: ctypes.c_uint32, value: int, timeout_s: float) -> None:
    """Return when somebody wakes those who wait at word, at once if it is not value, or after timeout_s.

    May return for no reason, too: look at the word again.
    """
    whole, rest = divmod(timeout_s, 1)
    timeout = _Timespec(int(whole), int(rest * 1e9))
    _libc.syscall(_SYSCALL, ctypes.byref(word), _WAIT, ctypes.c_uint32(value), ctypes.byref(timeout), None, 0)


def wake_all(word: ctypes.c_uint32) -> None:
    """Wake all who wait at word."""
    _libc.syscall(_SYSCALL, ctypes.byref(word), _WAKE, _EVERYBODY, None, None, 0)
