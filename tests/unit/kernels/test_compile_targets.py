"""What is known of GPUs that are not here."""

import pytest

targets = pytest.importorskip("kvasir_kernels.compile_targets", reason="needs Triton", exc_type=ImportError)


@pytest.mark.parametrize(
    ("name", "kib"),
    [
        ("sm_80", 163), ("sm_86", 99), ("sm_87", 163), ("sm_89", 99), ("sm_90", 227), ("sm_100", 227), ("sm_120", 99),
        ("gfx942", 64), ("gfx1100", 64),
    ],
)  # fmt: skip
def test_a_program_has_no_more_shared_memory_than_its_own_gpu_gives_a_block(name: str, kib: int) -> None:
    assert targets.gpu_of(name).max_shared == kib * 1024


def test_a_gpu_that_is_newer_than_the_table_is_credited_with_the_least_of_its_kin() -> None:
    kin = [targets.gpu_of(name).max_shared for name in ("sm_80", "sm_86", "sm_90", "sm_100", "sm_120")]
    assert targets.gpu_of("sm_130").max_shared == min(kin)


@pytest.mark.parametrize("name", ["sm_90", "sm_120", "gfx942", "gfx1100"])
def test_a_target_has_the_name_that_it_was_found_by(name: str) -> None:
    assert targets.name_of(targets.gpu_of(name).target) == name


def test_what_is_no_gpus_name_is_told_those_that_are() -> None:
    with pytest.raises(ValueError, match="'h100' is no GPU's name; there are sm_80, sm_90, sm_100, gfx942"):
        targets.gpu_of("h100")
