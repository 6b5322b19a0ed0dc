"""What a caller gives once, or once for each prompt."""

from collections.abc import Sequence

from kvasir_protocol.errors import InvalidRequest
from kvasir_protocol.request import SamplingParams


def params_per_prompt(params: SamplingParams | Sequence[SamplingParams], num_prompts: int) -> list[SamplingParams]:
    """Raises InvalidRequest if there are several, but not one for each."""
    if isinstance(params, SamplingParams):
        return [params] * num_prompts
    if len(params) != num_prompts:
        raise InvalidRequest(
            f"{len(params)} sampling_params for {num_prompts} prompts; give one, or one for each", "sampling_params"
        )
    return list(params)


def priorities_per_prompt(priorities: Sequence[int] | None, num_prompts: int) -> list[int]:
    """0 where none were given. Raises InvalidRequest if there is not one for each."""
    if priorities is None:
        return [0] * num_prompts
    if len(priorities) != num_prompts:
        raise InvalidRequest(f"{len(priorities)} priorities for {num_prompts} prompts; give one each", "priority")
    return list(priorities)
