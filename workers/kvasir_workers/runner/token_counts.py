"""Which tokens a sequence has had, and how often: kept from step to step, so that a step costs only its new tokens."""

import numpy as np
from numpy.typing import NDArray

from kvasir_workers.sequence import Sequence as TokenSequence


class TokenCounts:
    """Distinct tokens of one sequence with their number in its answer; the prompt's, too, where they are penalised."""

    def __init__(self, sequence: TokenSequence) -> None:
        self._sequence = sequence
        sampling = sequence.request.sampling
        first = 0 if sampling.repetition_penalty != 1.0 else sequence.num_prompt_tokens
        self._num_counted = max(first, sequence.num_prompt_tokens)
        distinct = sorted(set(sequence.token_ids[first : sequence.num_prompt_tokens]))
        self._place = {token_id: place for place, token_id in enumerate(distinct)}
        self._ids = np.array(distinct, dtype=np.int64)
        self._counts = np.zeros(len(distinct), dtype=np.float32)
        self.catch_up()

    def __len__(self) -> int:
        return len(self._place)

    @property
    def token_ids(self) -> NDArray[np.int64]:
        return self._ids[: len(self._place)]

    @property
    def counts(self) -> NDArray[np.float32]:
        """How often each of token_ids is in the answer."""
        return self._counts[: len(self._place)]

    def catch_up(self) -> None:
        """Count the tokens that came since the last time."""
        token_ids = self._sequence.token_ids
        for token_id in token_ids[self._num_counted :]:
            place = self._place.get(token_id)
            if place is None:
                place = self._append(token_id)
            self._counts[place] += 1
        self._num_counted = len(token_ids)

    def _append(self, token_id: int) -> int:
        place = self._place[token_id] = len(self._place)
        if place == len(self._ids):
            self._ids = np.resize(self._ids, max(16, 2 * place))
            grown = np.zeros(len(self._ids), dtype=np.float32)
            grown[:place] = self._counts
            self._counts = grown
        self._ids[place] = token_id
        return place
