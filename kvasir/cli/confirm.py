"""A question to the person at the terminal."""

import sys

from kvasir_protocol.errors import ConfigError


def confirm(question: str, *, is_sure: bool) -> bool:
    """True if the answer is yes; is_sure: it was given beforehand. Raises ConfigError where nobody can answer."""
    if is_sure:
        return True
    if not sys.stdin.isatty():
        raise ConfigError("there is no terminal to ask at; say --yes")
    try:
        return input(f"{question} [y/N] ").strip().lower() in ("y", "yes")
    except EOFError:  # Ctrl-D
        return False
