"""What one step tells one router, in frames that are not too large."""

import pytest

from kvasir_protocol.events import TokenLogprobs, TokenOutput
from kvasir_protocol.ids import RequestId
from kvasir_protocol.messages import Tokens
from kvasir_protocol.wire import decode
from kvasir_workers.token_frames import frames_of

MOST_BYTES = 400


def output(name: str, num_scores: int = 0) -> TokenOutput:
    """Some 15 bytes a score."""
    scores = (TokenLogprobs(logprob=-0.5),) * num_scores
    return TokenOutput(request_id=RequestId(name), first_index=0, token_ids=(7,), prompt_logprobs=scores)


def told(frames: tuple[bytes, ...]) -> list[tuple[TokenOutput, ...]]:
    messages = [decode(frame) for frame in frames]
    return [message.outputs for message in messages if isinstance(message, Tokens)]


def test_all_of_a_step_goes_in_one_frame_if_it_fits() -> None:
    outputs = [output("a"), output("b", 3)]
    packed = frames_of(outputs, MOST_BYTES)
    assert (told(packed.frames), packed.too_large) == ([tuple(outputs)], ())


def test_what_is_too_large_together_goes_in_several_frames_in_order() -> None:
    outputs = [output(name, 10) for name in "abcde"]
    packed = frames_of(outputs, MOST_BYTES)
    assert [found for some in told(packed.frames) for found in some] == outputs
    assert len(packed.frames) > 1
    assert all(len(frame) <= MOST_BYTES for frame in packed.frames)
    assert packed.too_large == ()


@pytest.mark.parametrize("place", range(4))
def test_what_is_too_large_alone_is_told_apart_and_all_others_are_told(place: int) -> None:
    outputs = [output(name) for name in "abc"]
    outputs.insert(place, output("large", 100))
    packed = frames_of(outputs, MOST_BYTES)
    assert packed.too_large == (outputs.pop(place),)
    assert [found for some in told(packed.frames) for found in some] == outputs
