"""YAML that knows on which line each of its settings stands."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import yaml

from kvasir_protocol.errors import ConfigError


@dataclass(frozen=True, slots=True, kw_only=True)
class Document:
    """A file as plain values; lines: where each setting stands, by its path, such as `pools[0].role`. "" is the top."""

    path: Path
    tree: object
    lines: dict[str, int]

    def place(self, setting: str | None) -> str:
        """`file:line` of a setting; of what it belongs to if the file does not hold it."""
        where = setting or ""
        while where not in self.lines:
            where = where[: max(where.rfind("."), where.rfind("["), 0)]
        return f"{self.path}:{self.lines[where]}"


def read_document(path: Path) -> Document:
    """Raises ConfigError for what can't be read, is not YAML, or sets the same thing twice."""
    try:
        text = path.read_text()
        root = yaml.compose(text, yaml.SafeLoader)
        tree = yaml.safe_load(text)
    except OSError as error:
        raise ConfigError(f"can't read {path}: {error.strerror}") from error
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        raise ConfigError(f"{path}:{line}: is not YAML: {error.problem or error.context}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not YAML: {error}") from error
    lines = {"": 1}
    for setting, line in _settings(root, "") if root is not None else ():
        if setting in lines:
            raise ConfigError(f"{path}:{line}: {setting!r} is set a second time, first on line {lines[setting]}")
        lines[setting] = line
    return Document(path=path, tree=tree, lines=lines)


def _settings(node: yaml.Node, where: str) -> Iterator[tuple[str, int]]:
    """Path and line of everything below node, in the order of the file."""
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            path = f"{where}.{key.value}" if where else str(key.value)
            yield path, key.start_mark.line + 1
            yield from _settings(value, path)
    elif isinstance(node, yaml.SequenceNode):
        for index, item in enumerate(node.value):
            yield f"{where}[{index}]", item.start_mark.line + 1
            yield from _settings(item, f"{where}[{index}]")
