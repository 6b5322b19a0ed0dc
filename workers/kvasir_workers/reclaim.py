"""Memory that loading took for a while, given back to the system."""

import ctypes
import mmap

from torch import Tensor


def give_back_freed() -> None:
    """Return what was freed to the system. The allocator would keep it: the plain copies of all packed weights."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # glibc's
    if trim is not None:
        trim(0)


def give_back_read(tensor: Tensor) -> None:
    """Return the memory of a tensor that lies in a mapped file and was read for the last time; nothing on a GPU.

    Whoever reads its numbers once more has them from the file; of memory that is no file's they are lost.
    """
    if tensor.device.type != "cpu":
        return
    page = mmap.PAGESIZE
    start, end = tensor.data_ptr(), tensor.data_ptr() + tensor.nbytes
    first_whole, after_whole = -(-start // page) * page, end // page * page
    if hasattr(mmap, "MADV_DONTNEED") and first_whole < after_whole:
        madvise = ctypes.CDLL(None).madvise
        madvise(ctypes.c_void_p(first_whole), ctypes.c_size_t(after_whole - first_whole), mmap.MADV_DONTNEED)
