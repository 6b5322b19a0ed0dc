"""What a step computes."""

from dataclasses import dataclass
from typing import NamedTuple

from kvasir_workers.kv.manager import PageCopy
from kvasir_workers.kv.offload.moves import Moves
from kvasir_workers.sequence import Sequence


class ScheduledSequence(NamedTuple):
    """num_new of the sequence's tokens are computed in this step, from start on.

    samples: the step reaches the sequence's last token and yields a new one. What is said here stays as it was when
    the step was planned; the sequence goes on.
    """

    sequence: Sequence
    start: int
    num_new: int
    samples: bool

    @property
    def num_generated(self) -> int:
        """Tokens of the answer before the one that the step samples."""
        return self.start + self.num_new - self.sequence.num_prompt_tokens


@dataclass(frozen=True, slots=True)
class StepPlan:
    """One step. Sequences with a single new token come first (the attention kernels count on it).

    moves and then copies are made before anything is computed.
    """

    entries: tuple[ScheduledSequence, ...]
    copies: tuple[PageCopy, ...] = ()
    moves: Moves | None = None

    @property
    def num_tokens(self) -> int:
        return sum(entry.num_new for entry in self.entries)
