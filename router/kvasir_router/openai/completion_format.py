"""Pieces as /v1/completions writes them: the prompt before its answer, its scores, the best of several."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

from kvasir_protocol.events import TokenLogprobs
from kvasir_protocol.request import SamplingParams
from kvasir_router.detokenise import Detokeniser
from kvasir_router.openai.formats import Json, choice_json, finite
from kvasir_router.pieces import Piece, PromptPiece, ScoredToken
from kvasir_router.tokenise import TextCodec


@dataclass(frozen=True, slots=True)
class Echo:
    """Each prompt's text, which its choices begin with. num_logprobs: likeliest tokens at each; None: no scores."""

    texts: tuple[str, ...]
    choices_per_prompt: int
    num_logprobs: int | None

    def text_of(self, choice_index: int) -> str:
        return self.texts[choice_index // self.choices_per_prompt]


@dataclass(frozen=True, slots=True)
class BestOf:
    """Of num_candidates answers to a prompt, the num_shown whose tokens have the best mean log-probability."""

    num_shown: int
    num_candidates: int
    keeps_logprobs: bool

    def choose(self, choices: Sequence[Piece]) -> list[Piece]:
        """choices: num_candidates for each prompt, prompt by prompt."""
        chosen: list[Piece] = []
        for start in range(0, len(choices), self.num_candidates):
            ranked = sorted(choices[start : start + self.num_candidates], key=_mean_logprob, reverse=True)
            chosen += ranked[: self.num_shown]
        chosen = [replace(piece, choice_index=index) for index, piece in enumerate(chosen)]
        return chosen if self.keeps_logprobs else [replace(piece, scored=()) for piece in chosen]


def _mean_logprob(piece: Piece) -> float:
    return sum(token.logprobs.logprob for token in piece.scored) / max(1, len(piece.scored))


@dataclass(frozen=True, slots=True)
class CompletionFormat:
    codec: TextCodec
    shows_token_ids: bool
    echo: Echo | None = None
    num_prompt_logprobs: int | None = None
    best: BestOf | None = None
    id_prefix: Literal["cmpl"] = "cmpl"

    def object_name(self, *, is_chunk: bool) -> str:
        return "text_completion"

    def opening(self, piece: Piece) -> Json | None:
        """The prompt, where it is echoed."""
        if self.echo is None or piece.prompt is None:
            return None
        opening = replace(piece, token_ids=(), finish_reason=None, stop_reason=None)
        logprobs = self._logprobs(self._prompt_logprobs(piece.prompt), [])
        content = {"text": self.echo.text_of(piece.choice_index)}
        return choice_json(opening, content, logprobs, shows_token_ids=self.shows_token_ids)

    def shown(self, choices: Sequence[Piece]) -> Sequence[Piece]:
        if self.best is None or self.best.num_shown == self.best.num_candidates:
            return choices
        return self.best.choose(choices)

    def choice(self, piece: Piece, *, is_chunk: bool) -> Json:
        text, prompt_logprobs = piece.text, _NOTHING
        if self.echo is not None and piece.prompt is not None and not is_chunk:
            text = self.echo.text_of(piece.choice_index) + text
            prompt_logprobs = self._prompt_logprobs(piece.prompt)
        logprobs = self._logprobs(prompt_logprobs, piece.scored, self._echoed_chars(piece))
        choice = choice_json(piece, {"text": text}, logprobs, shows_token_ids=self.shows_token_ids)
        if self.num_prompt_logprobs is not None and piece.prompt is not None:
            choice["prompt_logprobs"] = self._vllm_prompt_logprobs(piece.prompt, self.num_prompt_logprobs)
        return choice

    def _echoed_chars(self, piece: Piece) -> int:
        return 0 if self.echo is None else len(self.echo.text_of(piece.choice_index))

    def _logprobs(self, prompt: "_Scores", scored: Sequence[ScoredToken], first_offset: int = 0) -> Json | None:
        if not scored and not prompt.tokens:
            return None
        return {
            "tokens": [*prompt.tokens, *(self.codec.token_text(token.token_id) for token in scored)],
            "token_logprobs": [*prompt.logprobs, *(finite(token.logprobs.logprob) for token in scored)],
            "top_logprobs": [*prompt.top, *(self._likeliest(token.token_id, token.logprobs) for token in scored)],
            "text_offset": [*prompt.offsets, *(first_offset + token.text_offset for token in scored)],
        }

    def _prompt_logprobs(self, prompt: PromptPiece) -> "_Scores":
        """Nothing is known of the first token: no logprob, no alternatives."""
        if self.echo is None or self.echo.num_logprobs is None:
            return _NOTHING
        known = [_first_of(logprobs, self.echo.num_logprobs) for logprobs in prompt.logprobs]
        pairs = zip(prompt.token_ids[1:], known, strict=True)
        return _Scores(
            tokens=[self.codec.token_text(token_id) for token_id in prompt.token_ids],
            logprobs=[None, *(finite(item.logprob) for item in known)],
            top=[None, *(self._likeliest(token_id, item) for token_id, item in pairs)],
            offsets=self._offsets(prompt.token_ids),
        )

    def _offsets(self, token_ids: Sequence[int]) -> list[int]:
        detokeniser = Detokeniser(self.codec, SamplingParams(skip_special_tokens=False))
        offsets = []
        for token_id in token_ids:
            offsets.append(detokeniser.num_chars)
            detokeniser.push(token_id)
        return offsets

    def _likeliest(self, token_id: int, logprobs: TokenLogprobs) -> Json:
        """The chosen token is among them, even if it was unlikely."""
        top = zip(logprobs.top_token_ids, logprobs.top_logprobs, strict=True)
        found = {self.codec.token_text(top_id): finite(logprob) for top_id, logprob in top}
        found.setdefault(self.codec.token_text(token_id), finite(logprobs.logprob))
        return found

    def _vllm_prompt_logprobs(self, prompt: PromptPiece, num_top: int) -> list[Json | None]:
        """By token id, in vLLM's shape; None for the first token."""
        pairs = zip(prompt.token_ids[1:], prompt.logprobs, strict=True)
        return [None, *(self._ranked(token_id, _first_of(logprobs, num_top)) for token_id, logprobs in pairs)]

    def _ranked(self, token_id: int, logprobs: TokenLogprobs) -> Json:
        top = zip(logprobs.top_token_ids, logprobs.top_logprobs, strict=True)
        ranked = {top_id: (logprob, rank) for rank, (top_id, logprob) in enumerate(top, start=1)}
        entries = ranked if token_id in ranked else {token_id: (logprobs.logprob, None), **ranked}
        return {
            str(entry): {"logprob": finite(logprob), "rank": rank, "decoded_token": self.codec.token_text(entry)}
            for entry, (logprob, rank) in entries.items()
        }


@dataclass(frozen=True, slots=True)
class _Scores:
    """The prompt's part of a logprobs object."""

    tokens: Sequence[str] = ()
    logprobs: Sequence[float | None] = ()
    top: Sequence[Json | None] = ()
    offsets: Sequence[int] = ()


_NOTHING = _Scores()


def _first_of(logprobs: TokenLogprobs, num_top: int) -> TokenLogprobs:
    return replace(
        logprobs, top_token_ids=logprobs.top_token_ids[:num_top], top_logprobs=logprobs.top_logprobs[:num_top]
    )
