import sys

import pytest

from kvasir.bench.plots import check_matplotlib, cumulative_shares, write_plots
from kvasir.bench.records import Failure, Record
from kvasir_protocol.errors import ConfigError


def record(*chunk_s, failure=None):
    return Record(
        planned_s=0, queue_s=0, sent_s=0, ended_s=5, chunk_s=chunk_s, num_output_tokens=len(chunk_s), failure=failure
    )


def test_shares_end_at_all():
    assert cumulative_shares([3.0, 1.0, 2.0, 2.0]) == ([1.0, 2.0, 2.0, 3.0], [0.25, 0.5, 0.75, 1.0])


def test_a_missing_matplotlib_is_told_with_what_to_do(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(ConfigError, match="pip install matplotlib"):
        check_matplotlib()


def test_pictures_are_drawn_of_what_there_is(tmp_path):
    pytest.importorskip("matplotlib")
    paths = write_plots([record(0.1, 0.2, 1.3), record(failure=Failure("timeout"))], tmp_path / "plots")
    assert [path.name for path in paths] == ["ttft.png", "itl.png", "throughput.png"]
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in paths)
    assert write_plots([record(failure=Failure("timeout"))], tmp_path / "none") == []
