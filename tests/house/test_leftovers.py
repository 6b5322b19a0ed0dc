"""Nothing half done, and nothing of the workshop, in what we hand over."""

import re
import subprocess

import pytest
from source_files import ROOT

SKIPPED_SUFFIXES = {".safetensors", ".png", ".json", ".lock"}

LEFTOVERS = {
    "a note to oneself": r"\b(?:FIXME|XXX|HACK)\b",
    "a TODO without an issue": r"\bTODO\b(?!\(#\d+\))",
    "a debugger": r"\b(?:breakpoint\(\)|pdb\.set_trace)",
    "a merge conflict": r"^(?:<{7}|>{7}) ",
    "somebody's home": r"/(?:home|Users|root|work)/\w+",
}


@pytest.fixture(scope="module")
def texts():
    listing = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT, capture_output=True, text=True, check=True,
    ).stdout.splitlines()  # fmt: skip
    files = [ROOT / name for name in listing if name != "tests/house/test_leftovers.py"]
    return {
        str(file.relative_to(ROOT)): file.read_text()
        for file in files
        if file.is_file() and file.suffix not in SKIPPED_SUFFIXES
    }


@pytest.mark.parametrize("kind", LEFTOVERS)
def test_no_file_holds(texts, kind):
    pattern = re.compile(LEFTOVERS[kind], re.MULTILINE)
    found = [f"{name}: {match[0]}" for name, text in texts.items() for match in pattern.finditer(text)]
    assert found == []
