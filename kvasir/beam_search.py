"""Beam search, with transformers' scores and endings (transformers' `GenerationMixin._beam_search`)."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

from kvasir_protocol.errors import InvalidRequest
from kvasir_protocol.events import TokenLogprobs
from kvasir_protocol.request import MAX_LOGPROBS


@dataclass(frozen=True, slots=True, kw_only=True)
class BeamSearchParams:
    """How many beams, for how many tokens. A beam's score is its log-probability / its length ** length_penalty.

    early_stopping: True ends as soon as beam_width answers are complete; False when no running beam looks better than
    the worst of them, by its present length; "never" when none can become better at all. temperature: beams are
    scored by the model's own probabilities, so only 0 and 1 are taken. Raises InvalidRequest for what can't be.
    """

    beam_width: int
    max_tokens: int
    ignore_eos: bool = False
    temperature: float = 0.0
    length_penalty: float = 1.0
    early_stopping: bool | Literal["never"] = False

    def __post_init__(self) -> None:
        if not 1 <= self.beam_width < MAX_LOGPROBS:
            raise InvalidRequest(
                f"beam_width must be from 1 to {MAX_LOGPROBS - 1}, got {self.beam_width}", "beam_width"
            )
        if self.max_tokens < 1:
            raise InvalidRequest(f"max_tokens must be at least 1, got {self.max_tokens}", "max_tokens")
        if self.temperature not in (0, 1):
            raise InvalidRequest(
                "beams are scored by the model's own probabilities; leave temperature out", "temperature"
            )
        if self.early_stopping not in (True, False, "never"):
            raise InvalidRequest(
                f'early_stopping must be True, False or "never", got {self.early_stopping!r}', "early_stopping"
            )


class Beam(NamedTuple):
    """The tokens of one answer and the sum of their log-probabilities."""

    token_ids: tuple[int, ...]
    logprob: float


class FinishedBeam(NamedTuple):
    score: float
    beam: Beam
    is_stopped: bool


@dataclass(slots=True)
class BeamSearch:
    """One prompt's search: running beams, likeliest first, and the best complete ones, best first."""

    params: BeamSearchParams
    eos_token_ids: frozenset[int]
    running: list[Beam] = field(default_factory=lambda: [Beam((), 0.0)])
    finished: list[FinishedBeam] = field(default_factory=list)

    @property
    def num_candidates(self) -> int:
        """Likeliest tokens to know of each beam: enough for beam_width that do not end the answer."""
        return self.params.beam_width + len(self.eos_token_ids)

    def advance(self, continuations: Sequence[TokenLogprobs]) -> None:
        """One more token. continuations: of each running beam, its likeliest next tokens."""
        width = self.params.beam_width
        candidates = [
            Beam((*beam.token_ids, token_id), beam.logprob + logprob)
            for beam, tokens in zip(self.running, continuations, strict=True)
            for token_id, logprob in zip(tokens.top_token_ids, tokens.top_logprobs, strict=True)
        ]
        candidates.sort(key=lambda beam: -beam.logprob)
        # Only an end among the best beam_width counts: others would fill the places before better beams can end.
        self._take_finished([beam for beam in candidates[:width] if self._ends(beam)])
        self.running = [beam for beam in candidates if not self._ends(beam)][:width]
        if self._is_over():
            self.running = []

    def _ends(self, beam: Beam) -> bool:
        return beam.token_ids[-1] in self.eos_token_ids or len(beam.token_ids) == self.params.max_tokens

    def _take_finished(self, beams: list[Beam]) -> None:
        """The best beam_width of all that are complete."""
        new = [
            FinishedBeam(self._score(beam, len(beam.token_ids)), beam, beam.token_ids[-1] in self.eos_token_ids)
            for beam in beams
        ]
        self.finished = sorted([*self.finished, *new], key=lambda done: -done.score)[: self.params.beam_width]

    def _score(self, beam: Beam, length: int) -> float:
        return float(beam.logprob / length**self.params.length_penalty)

    def _is_over(self) -> bool:
        """Whether no running beam is to be followed any further."""
        if not self.running:
            return True
        if len(self.finished) < self.params.beam_width:
            return False
        if self.params.early_stopping is True:
            return True
        best = self.running[0]
        can_gain_by_length = self.params.early_stopping == "never" and self.params.length_penalty > 0
        length = self.params.max_tokens if can_gain_by_length else len(best.token_ids)
        return self._score(best, length) <= self.finished[-1].score
