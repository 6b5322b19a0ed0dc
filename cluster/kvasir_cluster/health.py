"""When to ask a rank whether it makes progress, and what its silence means. Pure; `probe.py` does the asking."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """The last question to one rank; open while it is unanswered. The time is of the controller's own clock."""

    asked_at_s: float
    is_open: bool


def should_ask(question: Question | None, now_s: float, period_s: float) -> bool:
    """True when there is no open question and the last answer is a period old."""
    return question is None or (not question.is_open and now_s - question.asked_at_s >= period_s)


def judge_silence(question: Question | None, now_s: float, deadline_s: float) -> str | None:
    """Why a rank is taken for hung, or None: it has left a question open for too long."""
    if question is None or not question.is_open or now_s - question.asked_at_s < deadline_s:
        return None
    return f"hung: no answer for {now_s - question.asked_at_s:.1f} s"
