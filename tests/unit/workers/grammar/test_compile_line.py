"""Tenants take turns, each within its own bound."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvasir_protocol.errors import ServiceUnavailable
from kvasir_workers.grammar.compile_line import CompileLine


def line_of(*items: tuple[str, str], max_per_tenant: int = 8, max_in_all: int = 64) -> CompileLine[str]:
    line: CompileLine[str] = CompileLine(max_per_tenant, max_in_all)
    for tenant, item in items:
        line.add(tenant, item)
    return line


def taken(line: CompileLine[str]) -> str:
    return "".join(iter(lambda: line.take() or "", ""))


def test_one_tenants_items_come_in_their_order() -> None:
    assert taken(line_of(("a", "1"), ("a", "2"), ("a", "3"))) == "123"


def test_tenant_that_comes_late_is_next_but_one_however_long_the_others_line_is() -> None:
    line = line_of(("loud", "1"), ("loud", "2"), ("loud", "3"))
    assert line.take() == "1"
    line.add("quiet", "x")
    line.add("quiet", "y")
    assert taken(line) == "2x3y"


def test_tenant_whose_line_was_empty_gets_no_turn_before_those_who_wait() -> None:
    line = line_of(("a", "1"), ("b", "2"))
    assert line.take() == "1"
    line.add("a", "3")
    assert taken(line) == "23"


def test_what_two_wait_for_comes_once_at_the_first_ones_turn_and_costs_the_other_none_of_its_turns() -> None:
    line = line_of(("loud", "1"), ("loud", "2"), ("loud", "3"), ("loud", "4"), ("quiet", "3"))
    assert taken(line) == "1324"


def test_same_item_twice_in_one_line_is_there_once() -> None:
    assert taken(line_of(("a", "1"), ("a", "1"), max_per_tenant=1)) == "1"


def test_full_line_of_a_tenant_refuses_that_tenant_alone() -> None:
    line = line_of(("loud", "1"), ("loud", "2"), max_per_tenant=2)
    with pytest.raises(ServiceUnavailable, match="2 grammars of yours"):
        line.add("loud", "3")
    line.add("quiet", "4")
    assert taken(line) == "142"


def test_lines_of_many_tenants_are_bounded_together() -> None:
    with pytest.raises(ServiceUnavailable, match="3 grammars are in line"):
        line_of(*((f"t{i}", str(i)) for i in range(4)), max_in_all=3)


@given(st.lists(st.tuples(st.sampled_from("abc"), st.integers(0, 9)) | st.none()))
def test_every_item_comes_once_for_each_time_that_it_is_wanted_anew(steps: list[tuple[str, int] | None]) -> None:
    """None: one is taken."""
    line: CompileLine[int] = CompileLine(100, 100)
    wanted: set[int] = set()
    for step in steps:
        if step is None:
            item = line.take()
            assert (item is None) == (not wanted)
            wanted -= {item} if item is not None else set()
        else:
            line.add(*step)
            wanted.add(step[1])
        assert {item for item in range(10) if item in line} == wanted
