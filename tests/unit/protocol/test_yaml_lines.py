from pathlib import Path

import pytest

from kvasir_protocol.errors import ConfigError
from kvasir_protocol.yaml_lines import read_document

TEXT = """\
# a comment
model:
  path: /models/llama

pools:
  - role: prefill
    replicas: 2
  - {role: decode,
     replicas: 3}
"""


def read(tmp_path: Path, text: str):
    file = tmp_path / "cluster.yaml"
    file.write_text(text)
    return read_document(file)


@pytest.mark.parametrize(
    ("setting", "line"),
    [
        ("model", 2),
        ("model.path", 3),
        ("pools[0]", 6),
        ("pools[0].replicas", 7),
        ("pools[1].role", 8),
        ("pools[1].replicas", 9),
    ],
)
def test_every_setting_has_its_line(tmp_path, setting, line):
    document = read(tmp_path, TEXT)
    assert document.place(setting) == f"{document.path}:{line}"


def test_a_setting_that_the_file_lacks_is_looked_for_where_it_would_be(tmp_path):
    document = read(tmp_path, TEXT)
    assert document.place("model.served_name").endswith(":2")
    assert document.place("pools[1].tensor_parallel_size").endswith(":8")
    assert document.place("router.port").endswith(":1")
    assert document.place(None).endswith(":1")


def test_what_is_set_twice_is_refused_with_both_lines(tmp_path):
    with pytest.raises(ConfigError, match=r"cluster.yaml:3: 'a.b' is set a second time, first on line 2"):
        read(tmp_path, "a:\n  b: 1\n  b: 2\n")


def test_a_mistake_of_form_names_its_line(tmp_path):
    with pytest.raises(ConfigError, match=r"cluster.yaml:3: is not YAML"):
        read(tmp_path, "a: 1\nb: 2\nc: d: e\n")


def test_a_tab_is_answered_with_what_to_take_instead(tmp_path):
    with pytest.raises(ConfigError, match=r"cluster.yaml:2: is not YAML: .*; indent with spaces$"):
        read(tmp_path, "a:\n\tb: 1\n")


@pytest.mark.parametrize("value", ["2001-99-99", "0x_"])
def test_what_only_looks_like_a_date_or_a_number_is_to_be_quoted(tmp_path, value):
    with pytest.raises(ConfigError, match=r"cluster.yaml:2: is not YAML: .*; if it is a text, put it in quotes"):
        read(tmp_path, f"a: 1\nb: {value}\n")


@pytest.mark.parametrize("text", ["a: &x [*x]\n", "[" * 5000])
def test_what_never_ends_is_refused(tmp_path, text):
    with pytest.raises(ConfigError, match=r"cluster.yaml: .* too deep in each other"):
        read(tmp_path, text)


def test_an_empty_file_has_one_line(tmp_path):
    document = read(tmp_path, "# nothing\n")
    assert document.tree is None
    assert document.place("model").endswith(":1")
