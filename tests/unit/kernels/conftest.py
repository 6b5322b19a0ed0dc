"""Each test of an operation runs twice: with the C++ kernels of this machine, and with torch alone."""

from collections.abc import Iterator

import pytest

from kvasir_kernels.native.choice import without_native_kernels
from kvasir_kernels.native.library import load_library


@pytest.fixture(scope="module", params=["native", "torch"], autouse=True)
def kernels(request: pytest.FixtureRequest) -> Iterator[str]:
    """Which of the two: "native" or "torch"."""
    if request.param == "native":
        if load_library() is None:
            pytest.skip("no C++ compiler here")
        yield "native"
    else:
        with without_native_kernels():
            yield "torch"
