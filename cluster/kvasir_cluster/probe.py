"""Asks ranks how they are, through Ray."""

from collections.abc import Sequence
from typing import Any

import ray
from ray.exceptions import ActorDiedError, ActorUnavailableError, RayError

from kvasir_cluster.health import Question, judge_silence, should_ask
from kvasir_cluster.spec import Timings


class HealthProbe:
    """Asks the ranks of one gang how they are, and never waits for the answers."""

    def __init__(self, actors: Sequence[Any], timings: Timings) -> None:
        self._actors = tuple(actors)
        self._timings = timings
        self._sentinels = [actor.wait_until_stopped.remote() for actor in self._actors]
        self._questions: list[Question | None] = [None] * len(self._actors)
        self._answers: list[Any] = [None] * len(self._actors)

    @property
    def sentinels(self) -> list[Any]:
        """Ray references that end when a rank's process does: wait on them to hear of a death at once."""
        return list(self._sentinels)

    def find_failure(self, now_s: float) -> str | None:
        """What is wrong with the first sick rank; None while all are well."""
        ended, _ = ray.wait(self._sentinels, num_returns=len(self._sentinels), timeout=0)
        if ended:
            return explain_death(ended[0])
        for index in range(len(self._actors)):
            if reason := self._check(index, now_s):
                return reason
        return None

    def _check(self, index: int, now_s: float) -> str | None:
        question = self._questions[index]
        if question is not None and question.is_open and ray.wait([self._answers[index]], timeout=0)[0]:
            try:
                if reason := ray.get(self._answers[index]):
                    return str(reason)
                question = Question(asked_at_s=question.asked_at_s, is_open=False)
            except ActorUnavailableError:
                # The connection broke but nobody says that the process died: ask again, the deadline runs on.
                self._answers[index] = self._actors[index].failure.remote()
            except RayError as error:
                return describe_error(error)
        if should_ask(question, now_s, self._timings.health_period_s):
            question = Question(asked_at_s=now_s, is_open=True)
            self._answers[index] = self._actors[index].failure.remote()
        self._questions[index] = question
        return judge_silence(question, now_s, self._timings.health_deadline_s)


def explain_death(reference: Any) -> str:
    """In one line, why a reference to an actor's method has ended although the actor was not asked to stop."""
    try:
        ray.get(reference)
    except RayError as error:
        return describe_error(error)
    return "stopped by somebody else"


def describe_error(error: RayError) -> str:
    """Ray's error in one line, without the remote traceback."""
    if isinstance(error, ActorDiedError):
        return "its process died"
    cause = getattr(error, "cause", None) or error
    first_line = next((line for line in str(cause).splitlines() if line.strip()), "no message")
    return f"{type(cause).__name__}: {first_line.strip()}"
