"""One stream on its way from the engine to the caller."""

import time
from collections.abc import Sequence

from kvasir.outputs import CompletionOutput, Increment, Logprob, RequestMetrics, RequestOutput
from kvasir.prompts import TokenPrompt
from kvasir_protocol.events import TokenLogprobs, TokenOutput
from kvasir_protocol.request import GenerationRequest
from kvasir_router.pieces import Piece, PieceReader, ScoredToken
from kvasir_router.tokenise import TextCodec


class Choice:
    """All that an engine said to one request, as text. is_done: nothing more is wanted of it."""

    def __init__(self, request: GenerationRequest, codec: TextCodec) -> None:
        self.request = request
        self.pieces: list[Piece] = []
        self.prompt_logprobs: tuple[TokenLogprobs, ...] = ()
        self.embedding: tuple[float, ...] = ()
        self._codec = codec
        self._reader = PieceReader(request, request.choice_index, codec)
        self._arrived_at = time.monotonic()
        self._queue_s = self._first_token_s = self._finished_s = 0.0
        self._num_taken = 0

    @property
    def is_done(self) -> bool:
        return bool(self.pieces) and self.pieces[-1].finish_reason is not None

    @property
    def num_cached_tokens(self) -> int:
        return self.pieces[0].num_cached_tokens

    def read(self, output: TokenOutput) -> None:
        since_arrival_s = time.monotonic() - self._arrived_at
        if not self.pieces:
            self._queue_s, self._first_token_s = output.queue_s or 0.0, since_arrival_s
            self.prompt_logprobs, self.embedding = output.prompt_logprobs, output.embedding
        self._finished_s = since_arrival_s
        self.pieces.append(self._reader.read(output))

    def take_increment(self) -> Increment | None:
        """What came since the last call, as one; None if nothing did."""
        new = self.pieces[self._num_taken :]
        self._num_taken = len(self.pieces)
        if not new:
            return None
        return Increment(
            index=self.request.choice_index,
            text="".join(piece.text for piece in new),
            token_ids=[token_id for piece in new for token_id in piece.token_ids],
            logprobs=self._alternatives(new),
            finish_reason=new[-1].finish_reason,
            stop_reason=new[-1].stop_reason,
        )

    def completion(self) -> CompletionOutput:
        """The whole choice, once it is done."""
        last = self.pieces[-1]
        assert last.finish_reason is not None, f"{self.request.request_id} did not end"
        wants_logprobs = self.request.sampling.logprobs is not None
        scored = [token for piece in self.pieces for token in piece.scored]
        return CompletionOutput(
            index=self.request.choice_index,
            text="".join(piece.text for piece in self.pieces),
            token_ids=[token_id for piece in self.pieces for token_id in piece.token_ids],
            cumulative_logprob=sum(token.logprobs.logprob for token in scored) if wants_logprobs else None,
            logprobs=self._alternatives(self.pieces),
            finish_reason=last.finish_reason,
            stop_reason=last.stop_reason,
        )

    def prompt_alternatives(self) -> list[dict[int, Logprob] | None] | None:
        if self.request.sampling.prompt_logprobs is None:
            return None
        targets = self.request.prompt_token_ids[1:]
        scored = (ScoredToken(*pair, 0) for pair in zip(targets, self.prompt_logprobs, strict=True))
        return [None, *(self._alternatives_of(token) for token in scored)]

    def _alternatives(self, pieces: Sequence[Piece]) -> list[dict[int, Logprob]] | None:
        if self.request.sampling.logprobs is None:
            return None
        return [self._alternatives_of(token) for piece in pieces for token in piece.scored]

    def _alternatives_of(self, scored: ScoredToken) -> dict[int, Logprob]:
        top = zip(scored.logprobs.top_token_ids, scored.logprobs.top_logprobs, strict=True)
        found = {
            token_id: Logprob(logprob, rank, self._codec.token_text(token_id))
            for rank, (token_id, logprob) in enumerate(top, start=1)
        }
        chosen = Logprob(scored.logprobs.logprob, None, self._codec.token_text(scored.token_id))
        return found if scored.token_id in found else {scored.token_id: chosen, **found}

    @staticmethod
    def metrics(group: Sequence["Choice"]) -> RequestMetrics:
        """Of all choices of one prompt, once they are done."""
        return RequestMetrics(
            queue_s=min(choice._queue_s for choice in group),
            first_token_s=min(choice._first_token_s for choice in group),
            finished_s=max(choice._finished_s for choice in group),
        )


def request_output(prompt: TokenPrompt, group: list[Choice]) -> RequestOutput:
    """What the choices of one prompt make together."""
    return RequestOutput(
        request_id=group[0].request.request_id.split("/")[0],
        prompt=prompt.text,
        prompt_token_ids=list(prompt.token_ids),
        outputs=[choice.completion() for choice in group],
        num_cached_tokens=max(choice.num_cached_tokens for choice in group),
        metrics=Choice.metrics(group),
        prompt_logprobs=group[0].prompt_alternatives(),
    )
