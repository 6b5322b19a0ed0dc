"""A step's tokens as frames that a link takes: one that is too large would break it, for all its streams."""

from collections.abc import Sequence
from dataclasses import dataclass

from kvasir_protocol.errors import InvalidRequest
from kvasir_protocol.events import TokenOutput
from kvasir_protocol.messages import Tokens
from kvasir_protocol.wire import MAX_MESSAGE_BYTES, encode


@dataclass(frozen=True, slots=True)
class TokenFrames:
    """frames hold all outputs, in their order, but those that are too large for any."""

    frames: tuple[bytes, ...]
    too_large: tuple[TokenOutput, ...] = ()


def frames_of(outputs: Sequence[TokenOutput], most_bytes: int = MAX_MESSAGE_BYTES) -> TokenFrames:
    """As few as halving finds: nearly always it is one."""
    frame = encode(Tokens(outputs=tuple(outputs)))
    if len(frame) <= most_bytes:
        return TokenFrames((frame,))
    if len(outputs) == 1:
        return TokenFrames((), tuple(outputs))
    middle = len(outputs) // 2
    first, second = (frames_of(half, most_bytes) for half in (outputs[:middle], outputs[middle:]))
    return TokenFrames(first.frames + second.frames, first.too_large + second.too_large)


def too_large_error() -> InvalidRequest:
    """Why an output is not told. Nothing in one but the scores of a prompt grows so much with the request."""
    return InvalidRequest(
        f"the log-probabilities of this prompt's tokens take more than {MAX_MESSAGE_BYTES // 2**20} MiB; ask for fewer "
        "of each, or send a shorter prompt",
        "prompt_logprobs",
    )
