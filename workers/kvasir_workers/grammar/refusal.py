"""Why a form can't be had."""

_MAX_REASON_CHARACTERS = 300
"""Errors of parsers quote what they were given."""


class Refusal(Exception):
    """The caller's mistake, or a wish that can't be honoured; becomes an InvalidRequest at the engine's door."""

    def __init__(self, reason: str) -> None:
        short = reason if len(reason) <= _MAX_REASON_CHARACTERS else reason[:_MAX_REASON_CHARACTERS] + "…"
        super().__init__(short)
