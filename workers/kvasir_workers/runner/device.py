"""What the engine asks of the device."""

from typing import Protocol

from kvasir_workers.runner.grammar_mask import GrammarMasks
from kvasir_workers.runner.sampler import SampledToken
from kvasir_workers.step_plan import StepPlan


class StepFlight(Protocol):
    """A step on its way through the device."""

    def allow(self, masks: GrammarMasks | None) -> None:
        """What the grammars of its sampling rows let through; said once. It waits for this before it samples."""
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
