"""Whatever else goes on in an engine, a request is told what transformers would tell it."""

from pathlib import Path

from hypothesis import settings

from tests.integration.engine.exactness import make_checkpoints, search


def test_nothing_that_goes_on_in_an_engine_changes_an_answer(tmp_path: Path) -> None:
    totals = search(make_checkpoints(tmp_path), settings(max_examples=100))
    for name in ("aborted", "resumed", "cached tokens", "preemptions", "pages from host memory"):
        assert totals[name] > 0, f"the scenarios met no {name}"
