"""Short prompts do not wait for a long one, if the pages of all leave for another replica. Values in, values out.

Prompts of streams that stay here call for no brief step, neither short nor long: it would be one more that streams wait
for. Where there are both kinds, those that stay get a token each of the others' brief step, and those in line wait.
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
