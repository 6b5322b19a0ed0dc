"""What a request wants to know of its own prompt, read from the final hidden states as the chunks are computed."""

from collections.abc import Callable
from typing import Protocol, assert_never

import torch
from torch import Tensor

from kvasir_protocol.events import TokenLogprobs
from kvasir_protocol.request import GenerationRequest, Pooling
from kvasir_workers.runner.token_scores import score_tokens

_MAX_LOGIT_BYTES = 64 * 2**20
"""Of logits at a time: a chunk of 2,048 tokens of a vocabulary of 150,000 would take 1.2 GB at once."""

_ANY_NUMBER = 2**62

LogitsOf = Callable[[Tensor], Tensor]
"""Hidden states [R, E] to next-token logits [R, V] in float32."""


class PromptReader(Protocol):
    """Sees the hidden state of each prompt position once, in order; num_read of them so far."""

    num_read: int

    @property
    def num_skippable(self) -> int:
        """Leading positions whose hidden states are not needed (any more): cached pages may stand in for them."""
        ...

    def read(self, hidden: Tensor, first_index: int, logits_of: LogitsOf) -> None:
        """hidden: [n, E], of the positions from first_index on; those before num_read were seen already."""
        ...


class PromptScorer:
    """Log-probabilities of each prompt token but the first, in logprobs. No prompt position may come from a cache."""

    def __init__(self, prompt: tuple[int, ...], num_top: int) -> None:
        self._prompt = prompt
        self._num_top = num_top
        self.num_read = 0
        self.logprobs: list[TokenLogprobs] = []

    @property
    def num_skippable(self) -> int:
        return self.num_read if len(self.logprobs) < len(self._prompt) - 1 else _ANY_NUMBER

    def read(self, hidden: Tensor, first_index: int, logits_of: LogitsOf) -> None:
        hidden = hidden[max(0, self.num_read - first_index) :]
        targets = torch.tensor(self._prompt[self.num_read + 1 :][: len(hidden)], device=hidden.device)
        self.num_read += len(hidden)
        start = 0
        num_rows = 1
        while start < len(targets):
            part = targets[start : start + num_rows]
            logprobs = torch.log_softmax(logits_of(hidden[start : start + len(part)]), dim=-1)
            self.logprobs += score_tokens(logprobs, part, [self._num_top] * len(part))
            start += len(part)
            num_rows = max(1, _MAX_LOGIT_BYTES // (4 * logprobs.shape[-1]))


class PromptPooler:
    """The prompt's hidden states as one vector."""

    def __init__(self, pooling: Pooling, num_tokens: int) -> None:
        self._pooling = pooling
        self._num_tokens = num_tokens
        self._state: Tensor | None = None
        self.num_read = 0

    @property
    def num_skippable(self) -> int:
        return _ANY_NUMBER if self._pooling == "last" else self.num_read

    def read(self, hidden: Tensor, first_index: int, logits_of: LogitsOf) -> None:
        new = hidden[max(0, self.num_read - first_index) :].float()
        if not len(new):
            return
        match self._pooling:
            case "mean":
                total = new.sum(dim=0)
                self._state = total if self._state is None else self._state + total
            case "last":
                self._state = new[-1]
            case "cls":
                self._state = new[0] if self._state is None else self._state
            case _:
                assert_never(self._pooling)
        self.num_read = first_index + len(hidden)

    def embedding(self) -> tuple[float, ...]:
        assert self._state is not None and self.num_read == self._num_tokens, f"{self.num_read} of {self._num_tokens}"
        state = self._state / self._num_tokens if self._pooling == "mean" else self._state
        return tuple(state.tolist())


def prompt_reader(request: GenerationRequest) -> PromptReader | None:
    """None where the prompt's hidden states interest nobody, or a lost replica has told all of them already."""
    if request.pooling is not None:
        return PromptPooler(request.pooling, len(request.prompt_token_ids))
    num_top = request.sampling.prompt_logprobs
    if num_top is None or request.emitted_token_ids:
        return None
    return PromptScorer(request.prompt_token_ids, num_top)


def read_logprobs(reader: object) -> tuple[TokenLogprobs, ...]:
    """What a PromptScorer read; nothing of others."""
    return tuple(reader.logprobs) if isinstance(reader, PromptScorer) else ()
