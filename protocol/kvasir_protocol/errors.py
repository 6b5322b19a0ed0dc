"""Every error that Kvasir raises on purpose.

KvasirError
├── InvalidRequest            the caller's mistake in one request: 400, names the field
│   ├── ContextTooLong        prompt + max_tokens beyond what the model or the pages can hold
│   └── ModelNotFound         no such model is served: 404
├── ConfigError               a setting that cannot be: names the key and the nearest right one
├── CheckpointError           a model directory that can't be loaded: missing, truncated, unknown
├── OutOfMemory               the plan does not fit the device: names what to lower
├── WireError                 a message that is not what it claims to be: dropped and counted
├── PlacementError            the cluster lacks what a gang needs
├── RankLost                  a rank of a gang died or hangs: the gang is of no use any more
└── ServiceUnavailable        nobody can take the request now: 503, with the seconds to wait
    └── StreamLost            an accepted stream could not be finished anywhere
"""


class KvasirError(Exception):
    """Root of the tree: its text is written to the person who must act."""


class InvalidRequest(KvasirError):
    """The caller's mistake; `field` names the part of the request to change."""

    def __init__(self, message: str, field: str | None = None) -> None:
        super().__init__(message)
        self.field = field


class ContextTooLong(InvalidRequest):
    """Prompt and requested tokens don't fit the context or the replica's pages."""


class ModelNotFound(InvalidRequest):
    """No model of that name is served here."""


class ConfigError(KvasirError):
    """A setting that cannot be; `setting` is its path in the tree, such as `engine.page_size`, where it is known."""

    def __init__(self, message: str, setting: str | None = None) -> None:
        super().__init__(message)
        self.setting = setting


class CheckpointError(KvasirError):
    """A model directory that can't be loaded."""


class OutOfMemory(KvasirError):
    """The memory plan does not fit the device."""


class WireError(KvasirError):
    """A message that is not what it claims to be."""


class PlacementError(KvasirError):
    """The cluster lacks what a gang needs."""


class RankLost(KvasirError):
    """A rank of a gang died or hangs; `ranks` did not come, as far as is known. The gang is to be built anew."""

    def __init__(self, message: str, ranks: tuple[int, ...] = ()) -> None:
        super().__init__(message)
        self.ranks = ranks


class ServiceUnavailable(KvasirError):
    """Nobody can take the request now; ask again after `retry_after_s`."""

    def __init__(self, message: str, retry_after_s: float = 1.0) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class StreamLost(ServiceUnavailable):
    """An accepted stream could not be finished on any replica."""
