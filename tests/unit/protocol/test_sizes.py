import pytest

from kvasir_protocol.errors import ConfigError
from kvasir_protocol.sizes import parse_bytes


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("1048576", 2**20),
        ("512MiB", 512 * 2**20),
        ("2GiB", 2 * 2**30),
        ("1.5G", 3 * 2**29),
        ("2GB", 2 * 10**9),
        ("64 kib", 64 * 2**10),
    ],
)
def test_sizes_are_read_with_and_without_unit(text: str, expected: int) -> None:
    assert parse_bytes(text, "kv_cache_bytes") == expected


@pytest.mark.parametrize("text", ["", "GiB", "-1", "1XB", "1 G B", "one", "9" * 400, "٣GiB"])
def test_what_is_no_size_is_refused_by_the_settings_name(text: str) -> None:
    with pytest.raises(ConfigError, match=r"kv_cache_bytes: .* is no size; write it like 512MiB or 2GiB"):
        parse_bytes(text, "kv_cache_bytes")
