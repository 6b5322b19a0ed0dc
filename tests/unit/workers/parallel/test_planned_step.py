"""A step to bytes and back."""

import dataclasses

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvasir_protocol.errors import WireError
from kvasir_protocol.ids import PageIndex
from kvasir_protocol.messages import RunStep
from kvasir_protocol.wire import decode, encode
from kvasir_workers.kv.manager import PageCopy
from kvasir_workers.parallel.planned_step import PlannedStep, from_message, to_message
from kvasir_workers.runner.batch import StepArrays

PAGE_SIZE = 4

numbers = st.integers(0, 2**31 - 1)


@st.composite
def steps(draw: st.DrawFn) -> PlannedStep:
    counts = draw(st.lists(st.integers(1, 9), min_size=1, max_size=5))
    starts = [draw(st.integers(0, 30)) for _ in counts]
    num_pages = [-(-(start + count) // PAGE_SIZE) for start, count in zip(starts, counts, strict=True)]
    tables = np.zeros((len(counts), max(num_pages)), dtype=np.int64)
    for row, number in enumerate(num_pages):
        tables[row, :number] = draw(st.lists(numbers, min_size=number, max_size=number))
    coming = draw(st.lists(st.tuples(st.integers(0, sum(counts) - 1), numbers), max_size=3))
    copies = draw(st.lists(st.builds(PageCopy, numbers.map(PageIndex), numbers.map(PageIndex), numbers), max_size=3))
    arrays = StepArrays(
        token_ids=np.array(draw(st.lists(numbers, min_size=sum(counts), max_size=sum(counts)))),
        coming=np.array(coming, dtype=np.int64).reshape(-1, 2).T,
        starts=np.array(starts),
        counts=np.array(counts),
        samples=np.array([draw(st.booleans()) for _ in counts]),
        tables=tables,
    )
    return PlannedStep(arrays, np.array([draw(st.integers(0, count)) for count in counts]), tuple(copies))


@given(steps())
def test_step_comes_out_of_its_message_as_it_went_in(step: PlannedStep) -> None:
    message = decode(encode(to_message(step, PAGE_SIZE, number=7)))
    assert isinstance(message, RunStep)
    assert message.number == 7
    found = from_message(message, PAGE_SIZE)
    for field in dataclasses.fields(StepArrays):
        expected = getattr(step.arrays, field.name)
        np.testing.assert_array_equal(getattr(found.arrays, field.name), expected, strict=field.name != "coming")
    np.testing.assert_array_equal(found.num_shown, step.num_shown)
    assert found.copies == step.copies


def a_step() -> PlannedStep:
    """A decode that samples, three tokens of a chunk, two of them shown, and a last chunk that samples."""
    arrays = StepArrays(
        token_ids=np.arange(6),
        coming=np.zeros((2, 0), dtype=np.int64),
        starts=np.array([5, 0, 2]),
        counts=np.array([1, 3, 2]),
        samples=np.array([True, False, True]),
        tables=np.array([[7, 2], [9, 0], [5, 0]]),
    )
    return PlannedStep(arrays, np.array([0, 2, 0]))


def test_rows_that_sample_come_before_those_that_are_shown() -> None:
    assert a_step().wanted_rows().tolist() == [0, 5, 1, 2]


def test_step_of_which_nobody_wants_anything_still_yields_a_row() -> None:
    arrays = dataclasses.replace(a_step().arrays, samples=np.zeros(3, dtype=np.bool_))
    assert PlannedStep(arrays, np.zeros(3, dtype=np.int64)).wanted_rows().tolist() == [5]


@pytest.mark.parametrize(
    "change",
    [
        {"token_ids": b"\0" * 20},
        {"token_ids": b"\0" * 23},
        {"starts": b""},
        {"starts": b"\xff" * 12},
        {"counts": b"\0" * 12},
        {"samples": b"\0" * 8},
        {"num_shown": b""},
        {"pages": b"\0" * 20},
        {"copies": b"\0" * 8},
        {"coming": b"\0" * 4},
    ],
)
def test_parts_that_do_not_fit_are_refused(change: dict[str, bytes]) -> None:
    message = dataclasses.replace(to_message(a_step(), PAGE_SIZE, number=0), **change)
    with pytest.raises(WireError):
        from_message(message, PAGE_SIZE)
