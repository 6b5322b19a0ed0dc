"""How many tokens a step may still take."""

from dataclasses import dataclass


@dataclass(slots=True)
class StepBudget:
    """left: for anybody. spare: beyond, only for the rest of a prompt: a few tokens need no step of their own."""

    left: int
    spare: int = 0

    def share(self, num_pending: int, most: int, num_behind: int = 0) -> int:
        """What a sequence gets that lacks so many: at most `most`, and a token is left for each one behind it."""
        share = min(most, self._for_one(num_behind))
        return num_pending if num_pending <= share + self.spare else share

    def take(self, num_tokens: int, num_behind: int = 0) -> None:
        beyond = max(0, num_tokens - self._for_one(num_behind))
        self.left -= num_tokens - beyond
        self.spare -= beyond

    def _for_one(self, num_behind: int) -> int:
        return max(1, self.left - num_behind)
