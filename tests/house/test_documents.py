"""What the documents say of the repository is so."""

import dataclasses
import re

import pytest
import yaml
from source_files import ROOT

from kvasir_protocol import config, metrics

LIFE = "docs/life-of-a-request.md"

DOCUMENTS = (
    "README.md",
    "CONTRIBUTING.md",
    "deploy/ray/README.md",
    *sorted(f"docs/{path.name}" for path in (ROOT / "docs").glob("*.md")),
)

PLACES = ("", "protocol", "kernels", "workers", "router", "cluster")
"""Folders that a path in a document may start from: `kvasir_router/app.py` means router/kvasir_router/app.py."""

CODE = (*PLACES[1:], "kvasir", "bench", "scripts", "tests")

SETTINGS = {
    "model": config.ModelConfig,
    "pools": config.PoolConfig,
    "engine": config.EngineConfig,
    "handover": config.HandoverConfig,
    "router": config.RouterConfig,
}
"""By the heading of docs/settings.md."""

SETTLED_BY_THE_COMMAND = ("path", "served_name", "role")
"""Without a default in the tree: the document has words for them."""


def text_of(document):
    return (ROOT / document).read_text()


def python_files_named_in(text):
    return sorted(set(re.findall(r"[\w./-]+\.py\b", text)))


def anchors_of(document):
    """Of its headings, as a reader's browser finds them."""
    headings = re.findall(r"^#+ (.+)$", text_of(document), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


def is_there(link, document):
    path, _, anchor = link.partition("#")
    target = (ROOT / document).parent / path if path else ROOT / document
    return target.exists() and (not anchor or anchor in anchors_of(target.resolve().relative_to(ROOT)))


def section_of(document, heading):
    return text_of(document).partition(f"\n## {heading}\n")[2].partition("\n## ")[0]


def test_life_of_a_request_names_only_files_that_exist():
    named = python_files_named_in(text_of(LIFE))
    assert len(named) >= 10, f"{LIFE} should walk through the files"
    assert [name for name in named if not any((ROOT / place / name).is_file() for place in PLACES)] == []


@pytest.mark.parametrize("document", DOCUMENTS)
def test_links_and_scripts_of_a_document_exist(document):
    text = text_of(document)
    links = [target for target in re.findall(r"\]\(([^)]+)\)", text) if "://" not in target]
    scripts = re.findall(r"\b(?:scripts|\.ci)/[\w-]+", text)
    assert [link for link in links if not is_there(link, document)] == []
    assert [script for script in scripts if not (ROOT / script).exists()] == []


@pytest.mark.parametrize("document", DOCUMENTS)
def test_python_files_and_modules_of_a_document_exist(document):
    text = text_of(document)
    files = [f"/{path.relative_to(ROOT)}" for folder in CODE for path in (ROOT / folder).rglob("*.py")]
    named = [f"/{name.lstrip('/')}" for name in python_files_named_in(text)]
    named += [f"/{module.replace('.', '/')}" for module in re.findall(r"python -m (\w[\w.]*\w)", text)]
    endings = {name: (name, f"{name}.py", f"{name}/__main__.py") for name in named}
    assert [name for name, ending in endings.items() if not any(file.endswith(ending) for file in files)] == []


def test_readme_names_every_flag_of_serve(capsys):
    from kvasir.cli.main import build_parser

    with pytest.raises(SystemExit):
        build_parser().parse_args(["serve", "--help"])
    flags = set(re.findall(r"--[a-z][a-z-]+", capsys.readouterr().out)) - {"--help"}
    readme = text_of("README.md")
    assert sorted(flag for flag in flags if flag not in readme) == []


@pytest.mark.parametrize("heading", SETTINGS)
def test_every_setting_is_told_with_its_default(heading):
    fields = dataclasses.fields(SETTINGS[heading])
    told = dict(re.findall(r"^\| `(\w+)` \| (.*?) \|", section_of("docs/settings.md", f"`{heading}`"), re.MULTILINE))
    assert sorted(told) == sorted(field.name for field in fields)
    defaults = {field.name: field.default for field in fields if field.name not in SETTLED_BY_THE_COMMAND}
    found = {name: yaml.safe_load(told[name]) for name in defaults}
    assert found == {name: list(value) if isinstance(value, tuple) else value for name, value in defaults.items()}


def test_every_metric_is_told():
    names = {value for value in vars(metrics).values() if isinstance(value, str) and re.match(r"(vllm|kvasir):", value)}
    assert names == set(re.findall(r"`((?:vllm|kvasir):\w+)`", section_of("docs/operating.md", "What to watch")))
