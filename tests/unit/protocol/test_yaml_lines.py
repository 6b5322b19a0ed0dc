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


def test_an_empty_file_has_one_line(tmp_path):
    document = read(tmp_path, "# nothing\n")
    assert document.tree is None
    assert document.place("model").endswith(":1")
