"""The tokens of one sequence, as its sampler knows them: kept from step to step, so that a step costs one token.

The sequence itself may not have been told yet of the token that was sampled last.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from kvasir_workers.sequence import Sequence as TokenSequence


class TokenCounts:
    """Distinct tokens with their number in an answer; those of seen too, with 0 where the answer has them not."""

    def __init__(self, seen: Sequence[int], answer: Sequence[int]) -> None:
        distinct = sorted(set(seen))
        self._place = {token_id: place for place, token_id in enumerate(distinct)}
        self._ids = np.array(distinct, dtype=np.int64)
        self._counts = np.zeros(len(distinct), dtype=np.float32)
        for token_id in answer:
            self.add(token_id)

    def __len__(self) -> int:
        return len(self._place)

    @property
    def token_ids(self) -> NDArray[np.int64]:
        return self._ids[: len(self._place)]

    @property
    def counts(self) -> NDArray[np.float32]:
        """How often each of token_ids is in the answer."""
        return self._counts[: len(self._place)]

    def add(self, token_id: int) -> None:
        place = self._place.get(token_id)
        if place is None:
            place = self._append(token_id)
        self._counts[place] += 1

    def _append(self, token_id: int) -> int:
        place = self._place[token_id] = len(self._place)
        if place == len(self._ids):
            self._ids = np.resize(self._ids, max(16, 2 * place))
            grown = np.zeros(len(self._ids), dtype=np.float32)
            grown[:place] = self._counts
            self._counts = grown
        self._ids[place] = token_id
        return place


class AnswerHistory:
    """An answer so far, and the counts of its tokens: the prompt's, too, where they are penalised."""

    def __init__(self, sequence: TokenSequence) -> None:
        num_prompt = sequence.num_prompt_tokens
        counts_prompt = sequence.request.sampling.repetition_penalty != 1.0
        self._answer = sequence.token_ids[num_prompt:]
        self.counts = TokenCounts(sequence.token_ids[:num_prompt] if counts_prompt else (), self._answer)

    def add(self, token_id: int) -> None:
        self._answer.append(token_id)
        self.counts.add(token_id)

    def ends_with(self, token_ids: Sequence[int]) -> bool:
        num = len(token_ids)
        return num == 0 or self._answer[-num:] == list(token_ids)
