"""Short prompts do not wait for long ones where nothing but prompts is computed. Values in, values out.

Only prompts whose pages leave for another replica: beside streams of its own, an engine would
make these wait more often.
"""

from collections.abc import Collection, Iterable
from collections.abc import Sequence as Many

from kvasir_workers.sequence import Sequence


def overtakers(running: Collection[Sequence], waiting: Iterable[Sequence], step_tokens: int) -> list[Sequence]:
    """Those in line that fit into a step together and have less to compute than a prompt that was begun and would
    take most of it; the shortest first."""
    begun = [_left(sequence) for sequence in running if sequence.is_prefill_only]
    longest = max(begun, default=0)
    if longest <= step_tokens // 2:
        return []
    shorter = [sequence for sequence in waiting if sequence.is_prefill_only and _left(sequence) < longest]
    # Each that runs gets a token, whatever else the step does.
    return _first_that_fit(sorted(shorter, key=_left), step_tokens - len(running))


def _left(sequence: Sequence) -> int:
    return sequence.num_pending


def _first_that_fit(sequences: Many[Sequence], num_tokens: int) -> list[Sequence]:
    chosen = []
    for sequence in sequences:
        num_tokens -= _left(sequence)
        if num_tokens < 0:
            break
        chosen.append(sequence)
    return chosen
