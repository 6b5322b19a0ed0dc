"""The log of a process that Ray runs for a cluster."""

import logging


def open_log() -> None:
    """From now on what modules say of themselves, too, goes to where Ray keeps what this process prints."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
