"""What an engine tells: the tokens of each step, and how it fares."""

from dataclasses import dataclass

from kvasir_protocol.ids import ReplicaId, RequestId
from kvasir_protocol.request import FinishReason


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenLogprobs:
    """Natural logarithms of one token's probability and of the likeliest tokens' (best first), before any penalty."""

    logprob: float
    top_token_ids: tuple[int, ...] = ()
    top_logprobs: tuple[float, ...] = ()


@dataclass(slots=True, kw_only=True)
class TokenOutput:
    """New tokens of one sequence. first_index counts generated tokens from 0, so that a reader can drop repeats.

    num_cached_tokens: prompt tokens found in the prefix cache. logprobs is empty or as long as token_ids.
    stop_token: the last token is one that ended the sequence and is not part of the answer's text.
    error: why, for the person who asked, if finish_reason is "error".
    error_field: the part of the request to change, if the error is the caller's.
    prompt_logprobs: with the first token, if they were asked for, one for each prompt token but the first.
    embedding: what a pooling request gets, in its only output. queue_s: with the first token, how long the request
    waited for its first step. Nobody changes one that was told; it is not frozen since every token of every sequence
    makes one, and that takes 0.4 us instead of 1.5.
    """

    request_id: RequestId
    first_index: int
    token_ids: tuple[int, ...]
    logprobs: tuple[TokenLogprobs, ...] = ()
    finish_reason: FinishReason | None = None
    stop_token: int | None = None
    num_cached_tokens: int = 0
    error: str = ""
    error_field: str | None = None
    prompt_logprobs: tuple[TokenLogprobs, ...] = ()
    embedding: tuple[float, ...] = ()
    queue_s: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineCounters:
    """Totals since the engine started.

    recomputed_tokens: computed again after a preemption. refused_requests: those that found the line full.
    overdue_requests: those that waited for their first step beyond their deadline.
    host_saved_pages: from the device to host memory; disk_saved_pages: from there to disk; x_restored_pages: back up
    from x; x_dropped_pages: gone for want of room in x or below it; disk_corrupt_pages: not read back as they were
    written.
    """

    num_steps: int = 0
    prompt_tokens: int = 0
    cached_prompt_tokens: int = 0
    computed_prompt_tokens: int = 0
    generated_tokens: int = 0
    num_preemptions: int = 0
    finished_stop: int = 0
    finished_length: int = 0
    finished_abort: int = 0
    finished_error: int = 0
    finished_handed_over: int = 0
    recomputed_tokens: int = 0
    refused_requests: int = 0
    overdue_requests: int = 0
    host_saved_pages: int = 0
    host_restored_pages: int = 0
    host_dropped_pages: int = 0
    disk_saved_pages: int = 0
    disk_restored_pages: int = 0
    disk_dropped_pages: int = 0
    disk_corrupt_pages: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class StepTimes:
    """Since the engine started, seconds and number of steps: prefill_ of those that computed prompt tokens, decode_ of
    the others. prefill_tokens: of prompts, decode_tokens: said in the others.

    _gaps: how many there were of each bucket of `step_lengths`, by the time from the end of the step before to their
    own, which is what lies between two tokens of a stream; empty until the first.
    """

    prefill_s: float = 0.0
    prefill_steps: int = 0
    prefill_tokens: int = 0
    prefill_gaps: tuple[int, ...] = ()
    decode_s: float = 0.0
    decode_steps: int = 0
    decode_tokens: int = 0
    decode_gaps: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class HandoverCounters:
    """Totals of the page traffic since the replica started; bytes by transport.

    pushed_tokens: those of the pages. hidden_bytes: pushed while the prompt was still being computed. push_s: how long
    each push had pages to send. exposed_s: from the last chunk of each prompt to its last page.
    """

    pushed_requests: int = 0
    pushed_tokens: int = 0
    pushed_bytes_shared_memory: int = 0
    pushed_bytes_process_group: int = 0
    pushed_bytes_tcp: int = 0
    received_requests: int = 0
    failed_requests: int = 0
    quarantined_pages: int = 0
    hidden_bytes: int = 0
    push_s: float = 0.0
    exposed_s: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplicaStats:
    """How a replica fares right now; sent in answer to a Ping."""

    replica_id: ReplicaId
    num_running: int
    num_waiting: int
    num_pages: int
    num_used_pages: int
    engine: EngineCounters
    handover: HandoverCounters
    resident_bytes: int
    step_times: StepTimes = StepTimes()
