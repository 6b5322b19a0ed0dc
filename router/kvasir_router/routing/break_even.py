"""Whether separate pools pay, and where a prompt is then computed with less delay.

A step that computes prompts makes all streams wait that run beside it. As long as that happens to few tokens, the
slowest one in a hundred is as fast as without, and replicas that all do both have more room: nothing is gained by
sparing them. Beyond that, both roads are priced in seconds of delay, the request's own and those of others:

    decode prefills      (queue there + prompt) / rate there, and each stream that runs there waits while it is computed
    another prefills     (queue there + prompt) / rate there + what of the hand-over is not hidden behind the prefill

What others wait counts the more, the more of their tokens are held up already: what there is to spend goes to those
prompts that gain most by it. A step that is no longer than some that come without prompts, too, moves no percentile but
the median, and counts half as much.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from kvasir_router.routing.fading import MEMORY_S
from kvasir_router.routing.load import ReplicaLoad

MOST_HELD_UP = 0.01
"""Of the tokens, that may wait for a prompt beside them: the 99th percentile does not see them."""

MOST_BRIEFLY_HELD_UP = 2 * MOST_HELD_UP
"""Of the tokens, that may wait for a prompt for no longer than one in a hundred waits anyway. No percentile but the
median sees them; but where streams take most of a replica's time, they lengthen all that comes after."""

MOST_SHARED = MOST_HELD_UP / 2
"""Of the tokens, up to which all replicas share all work. Not nearer to one in a hundred, since the share is estimated:
just beyond, the 99th percentile of a mixed pool is a step with prompts, two or three times as long."""

DEFAULT_HANDOVER_S = 2e-3
"""Until it is measured: a push and a commit between processes of one host."""


def share_held_up(replicas: Sequence[ReplicaLoad]) -> float | None:
    """Of the tokens, how many would wait for a prompt if all replicas shared all work; None while it isn't known.

    A prompt's step comes between two tokens of each stream beside it: so many such steps a second, each time a step
    between two tokens, is the share. Each replica would have as many tokens to say a second as any other: where one
    decodes for all, its own steps are longer than they would be.
    """
    steps = [load.rates.prefill_steps_per_s for load in replicas]
    known_steps = [rate for rate in steps if rate is not None]
    decodes = [load.rates.decode_step for load in replicas if load.rates.decode_step is not None]
    if len(known_steps) < len(replicas) or not decodes:
        return None
    tokens_per_s = sum(step.tokens_per_s for step in decodes) / len(replicas)
    return sum(known_steps) / len(replicas) * max(step.seconds_at(tokens_per_s) for step in decodes)


def share_held_up_at(decode: ReplicaLoad, num_more_steps: float, *, briefly: bool = False) -> float | None:
    """Of the tokens of the streams that run there, how many wait for a prompt, with so many more steps that compute
    some; None while it isn't known. briefly: with those that wait no longer than one in a hundred does anyway."""
    rates = decode.rates
    steps_per_s = rates.prefill_steps_per_s if briefly else rates.long_steps_per_s
    if steps_per_s is None or rates.decode_step is None:
        return None
    return (steps_per_s + num_more_steps / MEMORY_S) * rates.decode_step.seconds


@dataclass(frozen=True, slots=True, kw_only=True)
class Delay:
    """Seconds of one road: first_token_s until the request's first token, others_s that other streams wait longer.

    weight: what a second of the others counts beside one of the request's own.
    """

    first_token_s: float
    handover_s: float = 0.0
    others_s: float = 0.0
    weight: float = 1.0

    @property
    def total_s(self) -> float:
        return self.first_token_s + self.handover_s + self.weight * self.others_s


def delay_at_decode(num_tokens: int, decode: ReplicaLoad, rate: float, step_s: float = 0.0) -> Delay:
    """num_tokens: of the prompt, to be computed; rate: prompt tokens per second there.

    step_s: what a usual step with prompts takes. A shorter prompt that is noticed at all counts as much: it holds up as
    many tokens.
    """
    line_s, prompt_s = decode.prefill_tokens / rate, num_tokens / rate
    num_steps = max(1.0, (line_s + prompt_s) / step_s) if step_s else 1.0
    is_brief = _is_brief(min(prompt_s, step_s) if step_s else prompt_s, decode)
    held_up = share_held_up_at(decode, num_steps, briefly=is_brief)
    most = MOST_BRIEFLY_HELD_UP if is_brief else MOST_HELD_UP
    return Delay(
        first_token_s=line_s + prompt_s,
        others_s=decode.num_decoding * (prompt_s if is_brief else max(prompt_s, step_s)),
        weight=1.0 if held_up is None else held_up / most,
    )


def _is_brief(prompt_s: float, decode: ReplicaLoad) -> bool:
    """Whether a step that computes so much of a prompt beside the streams takes no longer than some do without."""
    step, usual_s = decode.rates.decode_step, decode.rates.usual_gap_s
    return step is not None and usual_s is not None and step.seconds + prompt_s <= usual_s


def delay_at_prefill(num_tokens: int, prefill: ReplicaLoad, rate: float) -> Delay:
    prompt_s = num_tokens / rate
    known_s = prefill.rates.handover_s
    handover_s = DEFAULT_HANDOVER_S if known_s is None else known_s
    if prefill.rates.push_s_per_token is not None:
        # A link slower than the prefill hides only as much as the prefill takes.
        handover_s = max(handover_s, num_tokens * prefill.rates.push_s_per_token - prompt_s)
    return Delay(first_token_s=_line_s(num_tokens, prefill, rate) + prompt_s, handover_s=handover_s)


def _line_s(num_tokens: int, prefill: ReplicaLoad, rate: float) -> float:
    """Until a prompt's turn comes: one that a usual step would take waits for no longer one, but for a step's end."""
    step_s = prefill.rates.prefill_step_s
    if step_s is None or num_tokens > step_s * rate:
        return prefill.prefill_tokens / rate
    before = sum(length for length in prefill.prefill_line if length <= num_tokens)
    return before / rate + (step_s if before < prefill.prefill_tokens else 0.0)


@dataclass(frozen=True, slots=True)
class Verdict:
    """reason: with the terms, for whoever asks why."""

    decode_prefills: bool
    reason: str


def weigh(num_tokens: int, prefill: ReplicaLoad, decode: ReplicaLoad) -> Verdict:
    """Which of the two should compute num_tokens of prompt; a prefill replica while neither's rate is known."""
    rates = prefill.rates.prefill_tokens_per_s, decode.rates.prefill_tokens_per_s
    prefill_rate, decode_rate = rates[0] or rates[1], rates[1] or rates[0]
    if not (prefill_rate and decode_rate):
        return Verdict(decode_prefills=False, reason="no prefill rate is known yet")
    local = delay_at_decode(num_tokens, decode, decode_rate, prefill.rates.prefill_step_s or 0.0)
    remote = delay_at_prefill(num_tokens, prefill, prefill_rate)
    reason = (
        f"{num_tokens} tokens: {_ms(local.first_token_s)} at {decode.replica_id} and {local.weight:.2f} times "
        f"{_ms(local.others_s)} for its {decode.num_decoding} streams, against {_ms(remote.first_token_s)} at "
        f"{prefill.replica_id} and {_ms(remote.handover_s)} to hand over"
    )
    return Verdict(decode_prefills=local.total_s < remote.total_s, reason=reason)


def _ms(seconds: float) -> str:
    return f"{seconds * 1000:.1f} ms"
