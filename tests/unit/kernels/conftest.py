"""Tests of operations that have C++ kernels run twice: with those of this machine, and with torch alone."""

from collections.abc import Iterator

import pytest

from kvasir_kernels.native.choice import without_native_kernels
from kvasir_kernels.native.library import load_library


@pytest.fixture(scope="module")
def native() -> None:
    """For what only the C++ kernels do."""
    if load_library() is None:
        pytest.skip("no C++ compiler here")


@pytest.fixture(scope="module", params=["native", "torch"])
def kernels(request: pytest.FixtureRequest) -> Iterator[str]:
    """Which of the two: "native" or "torch"."""
    if request.param == "native":
        request.getfixturevalue("native")
        yield "native"
    else:
        with without_native_kernels():
            yield "torch"
