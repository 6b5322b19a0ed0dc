"""Sums over ranks that really wait for each other.

In the interpreter a rank is a process, and memory is shared. On one GPU it is a stream, and its sums are a graph, which
is replayed.
"""

import mmap
import os
import signal
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from kvasir_kernels.launch import power_of_two
from kvasir_kernels.one_shot_all_reduce import reference
from kvasir_kernels.one_shot_all_reduce.reference import (
    BUFFER_BYTES,
    LAST_TURN,
    NUM_PROGRAMS,
    PeerMemory,
    peer_memory_bytes,
)
from tests.kernel_cases.checking import ROUNDING, Case, assert_close, name_of, random

_PATIENCE_S = 60
"""After which a rank that still waits for another is ended."""


@dataclass(frozen=True, slots=True)
class _Ranks:
    """memories: by rank. values: by turn and rank, what is to be added up and becomes the sum."""

    memories: list[PeerMemory]
    values: list[list[Tensor]]


def _bytes(device: torch.device, num_bytes: int) -> Tensor:
    """Full of NaN in any dtype; on a CPU what processes that are forked later share with this one."""
    if device.type == "cuda":
        return torch.full((num_bytes,), 255, dtype=torch.uint8, device=device)
    memory = torch.frombuffer(mmap.mmap(-1, num_bytes), dtype=torch.uint8)
    return memory.fill_(255)


def _make_ranks(num_ranks: int, parts: Sequence[Sequence[Tensor]], device: torch.device) -> _Ranks:
    owns = [_bytes(device, peer_memory_bytes(num_ranks)) for _ in range(num_ranks)]
    addresses = torch.tensor([own.data_ptr() for own in owns], device=device)
    memories = []
    for rank, own in enumerate(owns):
        turns = _bytes(device, 8 * NUM_PROGRAMS).view(torch.int64).zero_()
        memories.append(PeerMemory(rank, addresses, own, turns))
        memories[-1].signals.zero_()
    return _Ranks(memories, [[_placed(part, device) for part in turn] for turn in parts])


def _placed(part: Tensor, device: torch.device) -> Tensor:
    # Tensors lie at multiples of 16 bytes, as torch places them; what comes after the numbers is NaN.
    room = _bytes(device, power_of_two(part.nbytes + 1)).view(part.dtype)
    values = room[: part.numel()].view(part.shape)
    return values.copy_(part)


def _on_all(num_ranks: int, act: Callable[[int], None]) -> None:
    """Each rank in a process of its own; if one fails, those that wait for it are ended."""
    processes = {_fork(partial(act, rank)) for rank in range(num_ranks)}
    has_failed = False
    while processes:
        process, status = os.wait()
        processes.remove(process)
        if status and not has_failed:
            has_failed = True
            for other in processes:
                os.kill(other, signal.SIGKILL)
    assert not has_failed, "a rank failed, or waited too long"


def _fork(act: Callable[[], None]) -> int:
    process = os.fork()
    if process:
        return process
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.alarm(_PATIENCE_S)
    status = 1
    try:
        act()
        status = 0
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(status)


def _add_up(ranks: _Ranks, rank: int) -> None:
    from kvasir_kernels.one_shot_all_reduce.kernel import one_shot_all_reduce

    for values in ranks.values:
        one_shot_all_reduce(values[rank], ranks.memories[rank])


def _check(
    num_ranks: int,
    sizes: Sequence[int],
    dtype: torch.dtype,
    device: torch.device,
    other_dtype: torch.dtype | None = None,
) -> None:
    """The sums of one size after the other, twice, and every second one of other_dtype."""
    sizes, dtypes = [*sizes, *sizes], (dtype, other_dtype or dtype)
    parts = [
        [random(torch.device("cpu"), dtypes[turn % 2], num_ranks, size)[rank] * (turn + 1) for rank in range(num_ranks)]
        for turn, size in enumerate(sizes)
    ]
    ranks = _make_ranks(num_ranks, parts, device)
    if device.type == "cuda":
        _replay(num_ranks, ranks)
    else:
        _on_all(num_ranks, partial(_add_up, ranks))
    for values, turn in zip(ranks.values, parts, strict=True):
        expected = reference.one_shot_all_reduce(turn)
        assert_close(values[0].cpu(), expected, ROUNDING[expected.dtype])
        assert all(torch.equal(values[0], other) for other in values), "ranks have other bits"
    _check_turns(ranks, sizes, parts)


def _check_turns(ranks: _Ranks, sizes: Sequence[int], parts: Sequence[Sequence[Tensor]]) -> None:
    """Each program counted its own sums, and every rank has told every other of them."""
    counts = torch.zeros(NUM_PROGRAMS, dtype=torch.int64)
    for size, turn in zip(sizes, parts, strict=True):
        counts[: min(NUM_PROGRAMS, -(-size * turn[0].itemsize // 4096))] += 1
    for memory in ranks.memories:
        assert torch.equal(memory.turns.cpu(), counts)
        assert torch.equal(memory.signals[:, :-1].cpu(), counts[:, None].expand(-1, len(ranks.memories)))
        assert not memory.signals[:, -1].any()


def _replay(num_ranks: int, ranks: _Ranks) -> None:
    """The sums of all ranks at once, one stream each: first on numbers of no importance, then again from graphs."""
    streams = [torch.cuda.Stream() for _ in range(num_ranks)]  # type: ignore[no-untyped-call]
    given = [[part.clone() for part in turn] for turn in ranks.values]
    graphs = []
    for rank, stream in enumerate(streams):
        with torch.cuda.stream(stream):
            _add_up(ranks, rank)
    torch.cuda.synchronize()
    for memory in ranks.memories:
        memory.signals.zero_()
        memory.turns.zero_()
    for rank, stream in enumerate(streams):
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, stream=stream):
            _add_up(ranks, rank)
        graphs.append(graph)
    for values, turn in zip(ranks.values, given, strict=True):
        for mine, part in zip(values, turn, strict=True):
            mine.copy_(part)
    torch.cuda.synchronize()
    for graph, stream in zip(graphs, streams, strict=True):
        with torch.cuda.stream(stream):
            graph.replay()
    torch.cuda.synchronize()


def _check_release(device: torch.device) -> None:
    """A rank whose peer never comes ends all the same."""
    from kvasir_kernels.one_shot_all_reduce.kernel import one_shot_all_reduce

    ranks = _make_ranks(2, [[torch.ones(5000), torch.ones(5000)]] * 3, device)
    ranks.memories[0].release()
    for values in ranks.values:
        one_shot_all_reduce(values[0], ranks.memories[0])
    assert bool((ranks.memories[0].signals[:, -1] == LAST_TURN).all())
    assert ranks.memories[1].signals[:5].tolist() == [[3, 0, 0]] * 5, "the other one is told all the same"


def cases() -> dict[str, Case]:
    found: dict[str, Case] = {}
    for num_ranks in (1, 2, 3, 4, 8):
        for dtype in (torch.float32, torch.bfloat16, torch.float16):
            case = partial(_check, num_ranks, (64, 5000, 1), dtype)
            found[f"one_shot_all_reduce of {num_ranks} {name_of(dtype)}"] = _few_on_a_gpu(num_ranks, case)
    largest = BUFFER_BYTES // 4
    found["one_shot_all_reduce of full buffers"] = partial(_check, 2, (largest, 7, largest - 3), torch.float32)
    found["one_shot_all_reduce of changing dtypes"] = partial(
        _check, 2, (9000, 3000, 100), torch.float32, other_dtype=torch.bfloat16
    )
    found["one_shot_all_reduce without the others"] = _check_release
    return found


def _few_on_a_gpu(num_ranks: int, case: Case) -> Case:
    """Kernels that wait for each other must all run at once, which a device does not promise of many streams."""

    def check(device: torch.device) -> None:
        if device.type == "cpu" or num_ranks <= 4:
            case(device)

    return check
