"""A sum over the GPUs of one host in one launch on each, which may be part of a CUDA graph.

Every rank reads all ranks' numbers and adds them up for itself: less to wait for than a ring, more to read. Idea: the
one-shot all-reduces of TensorRT-LLM and of vLLM. How ranks wait for each other stands in reference.py: what counts the
turns is in memory, so that a replay goes on where the one before it ended.
"""

import triton
import triton.language as tl
from torch import Tensor

from kvasir_kernels.launch import power_of_two
from kvasir_kernels.one_shot_all_reduce.reference import BUFFER_BYTES, NUM_PROGRAMS, PeerMemory

_TURN_BYTES = 4096
"""Of a program's numbers in one turn of its loop: 16 bytes for each of 256 threads."""


def one_shot_all_reduce(values: Tensor, memory: PeerMemory) -> None:
    """Make values the sum of all ranks' values, in place, by the arithmetic of reference.py.

    values: as can_add_up wants them, of the same size and dtype at every rank; all ranks make the same sums in the same
    order, one at a time. Waits on the device until all ranks have come, however long that takes, or for `release`.
    """
    num_ranks, block = len(memory.addresses), _TURN_BYTES // values.itemsize
    _all_reduce[(min(NUM_PROGRAMS, triton.cdiv(values.numel(), block)),)](
        values, memory.addresses, memory.turns, memory.rank, values.numel(),
        WORLD=num_ranks, LANES=power_of_two(num_ranks + 1), BUFFER_BYTES=BUFFER_BYTES, NUM_PROGRAMS=NUM_PROGRAMS,
        BLOCK=block, num_warps=8,
    )  # fmt: skip


@triton.jit(do_not_specialize=["rank"])
def _all_reduce(
    values: tl.tensor,
    addresses: tl.tensor,
    turns: tl.tensor,
    rank: tl.int64,
    num_values: tl.int32,
    WORLD: tl.constexpr,
    LANES: tl.constexpr,
    BUFFER_BYTES: tl.constexpr,
    NUM_PROGRAMS: tl.constexpr,
    BLOCK: tl.constexpr,
) -> None:
    """Add up every NUM_PROGRAMS-th block of the numbers."""
    program = tl.program_id(0)
    dtype: tl.constexpr = values.dtype.element_ty
    turn = tl.load(turns + program) + 1
    buffer = (turn % 2) * BUFFER_BYTES
    own = (tl.load(addresses + rank) + buffer).to(tl.pointer_type(dtype))
    for start in tl.range(program * BLOCK, num_values, NUM_PROGRAMS * BLOCK):
        places = start + tl.arange(0, BLOCK)
        numbers = tl.load(values + places, mask=places < num_values)
        tl.store(tl.multiple_of(own, 16) + places, numbers, mask=places < num_values)
    # What all threads of the program wrote comes before the signals, which are only some threads'.
    tl.debug_barrier()
    lanes = tl.arange(0, LANES)
    is_rank = lanes < WORLD
    signals = tl.load(addresses + lanes, mask=is_rank, other=0) + 2 * BUFFER_BYTES
    theirs = signals.to(tl.pointer_type(tl.int64)) + program * (WORLD + 1) + rank
    tl.atomic_xchg(theirs, turn, mask=is_rank, sem="release", scope="sys")
    mine = (tl.load(addresses + rank) + 2 * BUFFER_BYTES).to(tl.pointer_type(tl.int64)) + program * (WORLD + 1)
    while _turn_that_may_begin(mine, WORLD, LANES) < turn:
        pass
    tl.debug_barrier()
    for start in tl.range(program * BLOCK, num_values, NUM_PROGRAMS * BLOCK):
        places = start + tl.arange(0, BLOCK)
        total = tl.zeros((BLOCK,), tl.float32)
        for index in tl.static_range(WORLD):
            part = (tl.load(addresses + index) + buffer).to(tl.pointer_type(dtype))
            total += tl.load(tl.multiple_of(part, 16) + places, mask=places < num_values, other=0.0).to(tl.float32)
        tl.store(values + places, total.to(dtype), mask=places < num_values)
    tl.store(turns + program, turn)


@triton.jit
def _turn_that_may_begin(signals: tl.tensor, WORLD: tl.constexpr, LANES: tl.constexpr) -> tl.tensor:
    """The last turn of which all ranks have told, or what the rank itself was released to."""
    lanes = tl.arange(0, LANES)
    # Nothing is added: this is how to read what other devices write, and all that they wrote before.
    told = tl.atomic_add(signals + lanes, tl.zeros((LANES,), tl.int64), mask=lanes <= WORLD, sem="acquire", scope="sys")
    by_all = tl.min(tl.where(lanes < WORLD, told, 9223372036854775807), 0)
    return tl.maximum(by_all, tl.max(tl.where(lanes == WORLD, told, 0), 0))
