"""The sum of what several ranks have, in plain torch; and the memory through which GPUs make it.

    rank r:  numbers of even turns | numbers of odd turns | signals: [programs, W + 1] int64

Sums are numbered, by each program of each rank for itself: its turns. In turn n a program writes its share of the
rank's numbers to buffer n % 2 of the rank's memory, tells every rank so (signal [program, rank] of theirs becomes n),
waits until all have told it, and adds up all ranks' shares. Nobody overwrites what is still read: whoever begins turn
n + 2 has heard in turn n + 1 that all others have ended turn n. By the last signal of each program the rank itself lets
it wait no more.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

BUFFER_BYTES = 2**19
"""Of one rank's numbers in one turn. Each rank reads those of all: with more, a ring is faster on any device."""

NUM_PROGRAMS = 32
"""At the most, so that all run at once on any device. Which bytes of the buffers are a program's never changes."""

_SIGNAL_BYTES = 8

LAST_TURN = 2**62
"""As a program's own signal it lets every wait pass."""


@dataclass(frozen=True, slots=True)
class PeerMemory:
    """What one rank knows of the memory of all.

    addresses: [W] int64, where the memory of each rank begins for this one. own: this rank's, `peer_memory_bytes` of
    uint8. turns: [NUM_PROGRAMS] int64, how many this rank's programs have had. Signals and turns are 0 before the
    first sum. All on the rank's device.
    """

    rank: int
    addresses: Tensor
    own: Tensor
    turns: Tensor

    @property
    def signals(self) -> Tensor:
        """What this rank's programs were told: [NUM_PROGRAMS, W + 1] int64, by each rank, and by itself."""
        return self.own[2 * BUFFER_BYTES :].view(torch.int64).view(NUM_PROGRAMS, len(self.addresses) + 1)

    def release(self) -> None:
        """Let this rank's sums end, now and later, whoever has come: what they give is of no use."""
        self.signals[:, -1].fill_(LAST_TURN)


def peer_memory_bytes(num_ranks: int) -> int:
    """Of each rank's memory."""
    return 2 * BUFFER_BYTES + NUM_PROGRAMS * (num_ranks + 1) * _SIGNAL_BYTES


def can_add_up(values: Tensor) -> bool:
    """Whether they fit into a buffer as they lie there."""
    is_float = values.dtype in (torch.float32, torch.bfloat16, torch.float16)
    return is_float and values.is_contiguous() and 0 < values.nbytes <= BUFFER_BYTES


def one_shot_all_reduce(parts: Sequence[Tensor]) -> Tensor:
    """Return the sum of the ranks' parts, all of one shape and dtype: added in float32 in the ranks' order, rounded
    once, so that it is the same bits at every rank."""
    total = torch.zeros(parts[0].shape, dtype=torch.float32, device=parts[0].device)
    for part in parts:
        total += part.float()
    return total.to(parts[0].dtype)
