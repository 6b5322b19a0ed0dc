"""What the documents say of the repository is so."""

import re

import pytest
from source_files import ROOT

LIFE = "docs/life-of-a-request.md"

PLACES = ("", "protocol", "kernels", "workers", "router", "cluster")
"""Folders that a path in a document may start from: `kvasir_router/app.py` means router/kvasir_router/app.py."""


def python_files_named_in(text):
    return sorted(set(re.findall(r"[\w./-]+\.py\b", text)))


def test_life_of_a_request_names_only_files_that_exist():
    named = python_files_named_in((ROOT / LIFE).read_text())
    assert len(named) >= 10, f"{LIFE} should walk through the files"
    assert [name for name in named if not any((ROOT / place / name).is_file() for place in PLACES)] == []


@pytest.mark.parametrize("document", ["README.md", "CONTRIBUTING.md"])
def test_links_and_scripts_of_a_document_exist(document):
    text = (ROOT / document).read_text()
    links = [target for target in re.findall(r"\]\(([^)#]+)\)", text) if "://" not in target]
    scripts = re.findall(r"\b(?:scripts|\.ci)/[\w-]+", text)
    assert [target for target in [*links, *scripts] if not (ROOT / target).exists()] == []


def test_readme_names_every_flag_of_serve(capsys):
    from kvasir.cli.main import build_parser

    with pytest.raises(SystemExit):
        build_parser().parse_args(["serve", "--help"])
    flags = set(re.findall(r"--[a-z][a-z-]+", capsys.readouterr().out)) - {"--help"}
    readme = (ROOT / "README.md").read_text()
    assert sorted(flag for flag in flags if flag not in readme) == []
