"""Who compiles too late is told of; who may, is not."""

import importlib.util
from types import SimpleNamespace

import pytest

from kvasir_kernels.compile_watch import CompileWatch


def watch() -> tuple[CompileWatch, list[str]]:
    told: list[str] = []
    return CompileWatch(told.append), told


def test_what_is_compiled_before_ready_is_only_counted() -> None:
    found, told = watch()
    found.count("a")
    assert (found.num_counted, found.late, told) == (1, [], [])


def test_what_is_compiled_after_ready_is_told() -> None:
    found, told = watch()
    found.arm()
    found.count("a")
    assert found.late == told == ["a"]


def test_another_model_may_be_made_ready_later() -> None:
    found, told = watch()
    found.arm()
    with found.permit():
        with found.permit():
            found.count("a")
        found.count("b")
    found.count("c")
    assert (told, found.num_counted) == (["c"], 3)


def test_only_our_kernels_are_counted() -> None:
    found, told = watch()
    found.arm()
    for module in ("kvasir_kernels.rms_norm.kernel", "somebody.elses"):
        found._on_compiled(fn=SimpleNamespace(module=module), repr=f"kernel of {module}")
    assert told == ["kernel of kvasir_kernels.rms_norm.kernel"]


@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="Triton is not installed")
def test_another_watcher_that_came_later_and_calls_us_is_not_called_back(monkeypatch: pytest.MonkeyPatch) -> None:
    import triton

    monkeypatch.setattr(triton.knobs.runtime, "jit_post_compile_hook", None)
    found, _ = watch()
    found.watch_triton()
    ours = triton.knobs.runtime.jit_post_compile_hook
    seen: list[object] = []

    def theirs(**facts: object) -> None:
        seen.append(facts["repr"])
        ours(**facts)

    triton.knobs.runtime.jit_post_compile_hook = theirs
    found.watch_triton()
    triton.knobs.runtime.jit_post_compile_hook(fn=SimpleNamespace(module="kvasir_kernels.x"), repr="a")
    assert (seen, found.num_counted) == (["a"], 1)
