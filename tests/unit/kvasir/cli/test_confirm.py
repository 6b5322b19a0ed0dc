import io

import pytest

from kvasir.cli.confirm import confirm
from kvasir_protocol.errors import ConfigError


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(("typed", "agreed"), [("y", True), ("YES", True), ("", False), ("n", False), ("what", False)])
def test_only_a_yes_is_one(monkeypatch, capsys, typed, agreed):
    monkeypatch.setattr("sys.stdin", Terminal(f"{typed}\n"))
    assert confirm("Go ahead?", is_sure=False) is agreed
    assert capsys.readouterr().out == "Go ahead? [y/N] "


def test_the_end_of_what_is_typed_is_no_yes(monkeypatch):
    monkeypatch.setattr("sys.stdin", Terminal())
    assert not confirm("Go ahead?", is_sure=False)


def test_who_is_sure_is_not_asked(monkeypatch):
    monkeypatch.setattr("sys.stdin", io.StringIO())
    assert confirm("Go ahead?", is_sure=True)


def test_without_a_terminal_the_flag_is_named(monkeypatch):
    monkeypatch.setattr("sys.stdin", io.StringIO("y\n"))
    with pytest.raises(ConfigError, match="--yes"):
        confirm("Go ahead?", is_sure=False)
