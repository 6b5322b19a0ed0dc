"""What a sum over ranks is, and what fits into one."""

import pytest
import torch

from kvasir_kernels.one_shot_all_reduce.reference import (
    BUFFER_BYTES,
    LAST_TURN,
    NUM_PROGRAMS,
    PeerMemory,
    can_add_up,
    one_shot_all_reduce,
    peer_memory_bytes,
)


def test_sum_is_made_in_float32_and_rounded_once() -> None:
    """One by one in bfloat16, each of the small ones would be lost."""
    parts = [torch.full((3,), value, dtype=torch.bfloat16) for value in (256.0, 0.5, 0.5, 1.0)]
    assert one_shot_all_reduce(parts).tolist() == [258.0] * 3
    assert one_shot_all_reduce(parts).dtype == torch.bfloat16


def test_order_is_that_of_the_ranks() -> None:
    parts = [torch.tensor([value]) for value in (1e8, 1.0, -1e8)]
    assert one_shot_all_reduce(parts).item() == 0.0
    assert one_shot_all_reduce([parts[0], parts[2], parts[1]]).item() == 1.0


@pytest.mark.parametrize(
    ("values", "fits"),
    [
        (torch.zeros(BUFFER_BYTES // 4), True),
        (torch.zeros(BUFFER_BYTES // 4 + 1), False),
        (torch.zeros(BUFFER_BYTES // 2, dtype=torch.bfloat16), True),
        (torch.zeros(0), False),
        (torch.zeros(8, 8)[:, ::2], False),
        (torch.zeros(8, dtype=torch.int64), False),
    ],
)
def test_only_floats_that_lie_together_and_fit_a_buffer_are_taken(values: torch.Tensor, fits: bool) -> None:
    assert can_add_up(values) == fits


def test_signals_come_after_the_two_buffers_and_a_release_changes_its_own_alone() -> None:
    own = torch.zeros(peer_memory_bytes(3), dtype=torch.uint8)
    memory = PeerMemory(1, torch.zeros(3, dtype=torch.int64), own, torch.zeros(NUM_PROGRAMS, dtype=torch.int64))
    assert memory.signals.shape == (NUM_PROGRAMS, 4)
    memory.release()
    assert memory.signals.tolist() == [[0, 0, 0, LAST_TURN]] * NUM_PROGRAMS
    assert not own[: 2 * BUFFER_BYTES].any()
    assert not memory.turns.any()
