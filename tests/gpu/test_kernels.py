"""The Triton kernels against their references on the device itself."""

import pytest
import torch

from tests.kernel_cases.all_cases import CASES

pytestmark = pytest.mark.gpu


@pytest.mark.parametrize("case", CASES)
def test_kernel_equals_its_reference(case: str) -> None:
    CASES[case](torch.device("cuda"))
