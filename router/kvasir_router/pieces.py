"""Token outputs to pieces of text: what the HTTP answers and the in-process LLM are both made of."""

from dataclasses import dataclass

from kvasir_protocol.events import TokenLogprobs, TokenOutput
from kvasir_protocol.request import FinishReason, GenerationRequest
from kvasir_router.detokenise import Detokeniser
from kvasir_router.tokenise import TextCodec


@dataclass(frozen=True, slots=True)
class ScoredToken:
    """One token with its log-probability; text_offset counts the characters of the answer before it."""

    token_id: int
    logprobs: TokenLogprobs
    text_offset: int


@dataclass(frozen=True, slots=True)
class PromptPiece:
    """A choice's prompt; logprobs, if they were asked for, one for each token but the first."""

    token_ids: tuple[int, ...]
    logprobs: tuple[TokenLogprobs, ...]


@dataclass(slots=True, kw_only=True)
class Piece:
    """What one output adds to one choice. finish_reason is set on the last piece only.

    stop_reason: the stop string, or the caller's stop token, that ended the answer. prompt: in the first piece only.
    Nobody changes one; it is not frozen since every token makes one, and that would take three times as long.
    """

    choice_index: int
    text: str
    token_ids: tuple[int, ...]
    scored: tuple[ScoredToken, ...] = ()
    finish_reason: FinishReason | None = None
    stop_reason: str | int | None = None
    num_cached_tokens: int = 0
    prompt: PromptPiece | None = None


class PieceReader:
    """Turns one choice's outputs into pieces; after one with a finish_reason nothing more must be read."""

    def __init__(self, request: GenerationRequest, choice_index: int, codec: TextCodec) -> None:
        self._sampling = request.sampling
        self._unseen_prompt: tuple[int, ...] | None = request.prompt_token_ids
        self._choice_index = choice_index
        self._detokeniser = Detokeniser(codec, request.sampling)

    def read(self, output: TokenOutput) -> Piece:
        num_shown = len(output.token_ids)
        if output.stop_token is not None and not self._sampling.include_stop_str_in_output:
            num_shown -= 1
        texts: list[str] = []
        scored: list[ScoredToken] = []
        num_read = 0
        for token_id in output.token_ids:
            if output.logprobs:
                scored.append(ScoredToken(token_id, output.logprobs[num_read], self._detokeniser.num_chars))
            if num_read < num_shown:
                texts.append(self._detokeniser.push(token_id))
            num_read += 1
            if self._detokeniser.stop_string is not None:
                break
        if output.finish_reason is not None and self._detokeniser.stop_string is None:
            texts.append(self._detokeniser.flush())
        finish_reason, stop_reason = self._ending(output)
        return Piece(
            choice_index=self._choice_index,
            text="".join(texts),
            token_ids=output.token_ids[:num_read],
            scored=tuple(scored),
            finish_reason=finish_reason,
            stop_reason=stop_reason,
            num_cached_tokens=output.num_cached_tokens,
            prompt=self._take_prompt(output),
        )

    def _take_prompt(self, output: TokenOutput) -> PromptPiece | None:
        token_ids, self._unseen_prompt = self._unseen_prompt, None
        return None if token_ids is None else PromptPiece(token_ids, output.prompt_logprobs)

    def _ending(self, output: TokenOutput) -> tuple[FinishReason | None, str | int | None]:
        if self._detokeniser.stop_string is not None:
            return "stop", self._detokeniser.stop_string
        is_callers_token = output.stop_token in self._sampling.stop_token_ids
        return output.finish_reason, output.stop_token if is_callers_token else None
