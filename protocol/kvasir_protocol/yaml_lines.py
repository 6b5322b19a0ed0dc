"""YAML that knows on which line each of its settings stands."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from yaml.constructor import ConstructorError
from yaml.reader import ReaderError

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


class _Loader(yaml.SafeLoader):
    """YAML's own, with the line of a value that looks like a date or a number and is none."""

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        try:
            return super().construct_object(node, deep)
        except ValueError as error:
            problem = f"{error}; if it is a text, put it in quotes"
            raise ConstructorError(problem=problem, problem_mark=node.start_mark) from error


def read_document(path: Path) -> Document:
    """Raises ConfigError for what can't be read, is not YAML, or sets the same thing twice."""
    text = _read_text(path)
    try:
        root = yaml.compose(text, _Loader)
        tree = yaml.load(text, _Loader)
        settings = tuple(_settings(root, "")) if root is not None else ()
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        problem = str(error.problem or error.context)
        advice = "; indent with spaces" if "'\\t'" in problem else ""
        raise ConfigError(f"{path}:{line}: is not YAML: {problem}{advice}") from error
    except ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        raise ConfigError(f"{path}:{line}: is not YAML: it has the character {error.character:#04x}") from error
    except RecursionError as error:
        raise ConfigError(f"{path}: an anchor holds itself, or settings lie too deep in each other") from error
    lines = {"": 1}
    for setting, line in settings:
        if setting in lines:
            raise ConfigError(f"{path}:{line}: {setting!r} is set a second time, first on line {lines[setting]}")
        lines[setting] = line
    return Document(path=path, tree=tree, lines=lines)


def _read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"can't read {path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        line = error.object.count(b"\n", 0, error.start) + 1
        raise ConfigError(f"{path}:{line}: is not YAML in UTF-8; save it in that encoding") from error


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
