"""Sizes as people write them."""

import re

from kvasir_protocol.errors import ConfigError

_UNITS = {
    "": 1,
    "K": 2**10, "KIB": 2**10, "KB": 10**3,
    "M": 2**20, "MIB": 2**20, "MB": 10**6,
    "G": 2**30, "GIB": 2**30, "GB": 10**9,
    "T": 2**40, "TIB": 2**40, "TB": 10**12,
}  # fmt: skip


def parse_bytes(text: str, name: str) -> int:
    """Bytes in a size such as 512MiB, 1.5G (binary) or 2GB (decimal). Raises ConfigError, with the setting's name."""
    match = re.fullmatch(r"(\d{1,18}(?:\.\d{1,18})?)\s*([A-Za-z]*)", text.strip(), flags=re.ASCII)
    if match is None or match[2].upper() not in _UNITS:
        raise ConfigError(f"{name}: {text!r} is no size; write it like 512MiB or 2GiB", name)
    return int(float(match[1]) * _UNITS[match[2].upper()])
