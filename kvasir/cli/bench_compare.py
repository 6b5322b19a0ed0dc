"""`kvasir bench compare`."""

import argparse

from rich.console import Console
from rich.table import Table

from kvasir.bench.compare import Comparison, compare
from kvasir.bench.results import load

COLOURS = {True: "green", False: "red", None: ""}


def bench_compare(options: argparse.Namespace) -> int:
    """Raises ConfigError for files that are no results, or of different workloads."""
    comparisons = compare(load(options.first), load(options.second), force=options.force)
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("")
    for column in (options.first.stem, options.second.stem, "ratio"):
        table.add_column(column, justify="right")
    for item in comparisons:
        table.add_row(item.name, f"{item.first:,.2f}", f"{item.second:,.2f}", _ratio(item))
    Console(highlight=False).print(table)
    return 0


def _ratio(item: Comparison) -> str:
    text = "-" if item.ratio is None else f"{item.ratio:.3f}"
    colour = COLOURS[item.is_better]
    return f"[{colour}]{text}[/{colour}]" if colour else text
