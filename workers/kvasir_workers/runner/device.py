"""What the engine asks of the device."""

from collections.abc import Callable
from typing import Protocol

from kvasir_workers.runner.grammar_mask import GrammarMasks
from kvasir_workers.runner.sampler import SampledToken
from kvasir_workers.step_plan import StepPlan


class StepFlight(Protocol):
    """A step on its way through the device."""

    def allow(self, make_masks: Callable[[], GrammarMasks | None] | None) -> None:
        """How to make the masks of its structured rows, None if it has none; said once. It waits for this before it
        samples, and the masks are made while the model runs."""
        ...

    def land(self) -> list[SampledToken]:
        """Wait for its end: one sampled token per entry that samples, in the plan's order."""
        ...


class Runner(Protocol):
    """Computes plans on the device, one after the other."""

    def launch(self, plan: StepPlan) -> StepFlight:
        """Write the new tokens' keys and values, and sample. A token that is still coming is the one that the step
        launched before this one samples."""
        ...
