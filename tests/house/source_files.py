"""The code that we ship, as files and as syntax trees."""

import ast
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[2]

PACKAGES = {
    "kvasir": ROOT / "kvasir",
    "kvasir_cluster": ROOT / "cluster" / "kvasir_cluster",
    "kvasir_kernels": ROOT / "kernels" / "kvasir_kernels",
    "kvasir_protocol": ROOT / "protocol" / "kvasir_protocol",
    "kvasir_router": ROOT / "router" / "kvasir_router",
    "kvasir_workers": ROOT / "workers" / "kvasir_workers",
}


def modules() -> list[Path]:
    """Every module of every package."""
    return sorted(path for folder in PACKAGES.values() for path in folder.rglob("*.py"))


def name_of(path: Path) -> str:
    """The path as a person writes it, from the root of the repository."""
    return str(path.relative_to(ROOT))


def parse(path: Path) -> ast.Module:
    return ast.parse(path.read_text(), filename=str(path))


def imported_modules(tree: ast.Module) -> Iterator[str]:
    """Full names of all that is imported, at whatever depth."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
