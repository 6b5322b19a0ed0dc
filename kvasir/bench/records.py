"""What became of each request of a load, as the client saw it."""

from dataclasses import dataclass
from typing import Literal

CountedBy = Literal["usage", "tokenizer", "chunks"]
"""Where an answer's number of tokens is from: the server, a tokenizer of ours, or the chunks that carried text."""


@dataclass(frozen=True, slots=True)
class Failure:
    """cause: a few words that many failures share, such as "HTTP 503". detail: what this one said."""

    cause: str
    detail: str = ""

    def __str__(self) -> str:
        return f"{self.cause}: {self.detail}" if self.detail else self.cause


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """One request. Seconds are on one clock; those of a failed request go as far as it came.

    planned_s: when it was to be sent; what it then waited for a free place (max_concurrency) is in queue_s.
    chunk_s: the arrival of each chunk that carried text. ended_s: of the last chunk that belongs to the answer.
    was_retried: see http_client.Answered.
    num_prompt_tokens: what the server counted, else what the workload asked for, 0 if neither is known.
    """

    planned_s: float
    queue_s: float
    sent_s: float
    ended_s: float
    chunk_s: tuple[float, ...] = ()
    num_prompt_tokens: int = 0
    num_output_tokens: int = 0
    counted_by: CountedBy = "usage"
    text: str = ""
    was_retried: bool = False
    failure: Failure | None = None

    @property
    def ttft_s(self) -> float:
        """To the first text; of an answer without any, to its end."""
        return (self.chunk_s[0] if self.chunk_s else self.ended_s) - self.sent_s

    @property
    def send_lag_s(self) -> float:
        """How much later than planned the client got round to it, without its waiting for a free place."""
        return self.sent_s - self.planned_s - self.queue_s

    @property
    def e2el_s(self) -> float:
        return self.ended_s - self.sent_s

    @property
    def tpot_s(self) -> float | None:
        """Seconds for each token after the first, however many came in a chunk; None if there are none."""
        if self.num_output_tokens < 2:
            return None
        return (self.e2el_s - self.ttft_s) / (self.num_output_tokens - 1)

    @property
    def itls_s(self) -> tuple[float, ...]:
        """Between chunks. Where chunks carry several tokens, these are fewer and longer than the gaps of tokens."""
        return tuple(later - earlier for earlier, later in zip(self.chunk_s, self.chunk_s[1:], strict=False))
