"""Tails, not medians: no file and no function that a person has to scroll through to understand."""

import ast

from source_files import modules, name_of, parse

MAX_FILE_LINES = 400
MAX_KERNEL_LINES = 500
MAX_FUNCTION_LINES = 60
MAX_PUBLIC_METHODS = 15


def definitions(kind):
    return [(name_of(path), node) for path in modules() for node in ast.walk(parse(path)) if isinstance(node, kind)]


def test_files_fit_a_readers_head():
    lengths = {name_of(path): len(path.read_text().splitlines()) for path in modules()}
    limits = {name: MAX_KERNEL_LINES if name.endswith("/kernel.py") else MAX_FILE_LINES for name in lengths}
    assert {name: length for name, length in lengths.items() if length >= limits[name]} == {}


def test_functions_fit_a_screen():
    functions = definitions((ast.FunctionDef, ast.AsyncFunctionDef))
    lengths = {f"{file}:{node.name}": (node.end_lineno or 0) - node.lineno + 1 for file, node in functions}
    assert {name: length for name, length in lengths.items() if length >= MAX_FUNCTION_LINES} == {}


def test_classes_do_one_thing():
    def num_public(node):
        return sum(isinstance(item, ast.FunctionDef) and not item.name.startswith("_") for item in node.body)

    counts = {f"{file}:{node.name}": num_public(node) for file, node in definitions(ast.ClassDef)}
    assert {name: count for name, count in counts.items() if count > MAX_PUBLIC_METHODS} == {}


def test_every_module_says_what_it_is_for():
    silent = [
        name_of(path) for path in modules() if path.read_text().strip() and ast.get_docstring(parse(path)) is None
    ]
    assert silent == []


def test_no_module_has_a_name_that_says_nothing():
    meaningless = {"utils", "util", "helpers", "helper", "common", "misc", "base2", "v2", "new", "tools"}
    assert [name_of(path) for path in modules() if path.stem in meaningless] == []
