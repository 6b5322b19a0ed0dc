"""`kvasir bench startup`."""

import argparse
from dataclasses import asdict
from statistics import median

from rich.console import Console
from rich.table import Table

from kvasir.bench.startup import KVASIR, Start, StartupBench
from kvasir.cli.bench_offline import write_json
from kvasir_protocol.errors import ConfigError


def bench_startup(options: argparse.Namespace) -> int:
    """Raises KvasirError when a server does not start or stop as it should."""
    if options.num_iters < 1 or not options.timeout > 0:
        raise ConfigError("--num-iters must be at least 1, and --timeout above 0")
    # The flag that comes last wins: nobody else's port is taken.
    bench = StartupBench([*KVASIR, "serve", *options.serve_arguments, "--port", "0"], options.timeout)
    console = Console(highlight=False)
    starts = []
    for number in range(options.num_iters):
        starts.append(bench.measure())
        console.print(f"start {number + 1}: first token after {starts[-1].first_token_s:.1f} s", markup=False)
    console.print(make_table(starts))
    if options.output_json is not None:
        write_json(options.output_json, [asdict(start) for start in starts])
    return 0


def make_table(starts: list[Start]) -> Table:
    """One row for each phase; seconds of every start, and their median."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("seconds")
    for number in range(len(starts)):
        table.add_column(str(number + 1), justify="right")
    table.add_column("median", justify="right")
    columns = [start.columns() for start in starts]
    for name in dict.fromkeys(name for column in columns for name in column):
        values = [column[name] for column in columns if name in column]
        cells = (f"{column[name]:.1f}" if name in column else "-" for column in columns)
        table.add_row(name, *cells, f"{median(values):.1f}")
    return table
