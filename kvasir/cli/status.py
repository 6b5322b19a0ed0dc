"""`kvasir status`: the replicas of a running server, in a table."""

import argparse
import time
from collections.abc import Callable, Sequence
from typing import Any

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from kvasir.cli.footprint import Footprint
from kvasir.cli.server_api import ServerApi

SAMPLE_S = 1.0
"""Between the two looks from which tokens per second are told."""

PLAIN_WIDTH = 120

NAME_COLUMNS = ("replica", "role", "state")
LOAD_COLUMNS = ("running", "waiting", "pages", "prompt tok/s", "new tok/s", "cached", "memory")


def show_status(options: argparse.Namespace) -> int:
    """Print it, once or until Ctrl-C. Raises KvasirError when nobody can be asked."""
    if options.address is not None:
        from kvasir.cli.cluster_status import show_cluster

        return show_cluster(options)
    server = ServerApi(options.url, options.api_key)
    before = server.status()
    footprint = Footprint(options.url, before)

    def look() -> RenderableType:
        nonlocal before
        earlier, before = before, server.status()
        costs = footprint.look(before)
        return Group(Text(_headline(options.url, before)), make_table(earlier, before), *([costs] if costs else []))

    time.sleep(SAMPLE_S)
    show(look, is_live=options.watch)
    return 0


def show(look: Callable[[], RenderableType], *, is_live: bool) -> None:
    """Print what look returns; is_live: every SAMPLE_S anew, in a terminal at the same place, for ever."""
    console = Console(highlight=False)
    if not console.is_terminal:
        console.width = PLAIN_WIDTH
    if not is_live:
        console.print(look())
        return
    with Live(look(), console=console, auto_refresh=False) as live:
        while True:
            time.sleep(SAMPLE_S)
            live.update(look(), refresh=True)


def _headline(url: str, status: dict[str, Any]) -> str:
    return (
        f"{status['model']} at {url}: {status['view']['phase']}, up for {status['uptime_s']:.0f} s, "
        f"{status['num_inflight']} streams, context of {status['max_model_len']} tokens"
    )


def make_table(before: dict[str, Any], after: dict[str, Any]) -> Table:
    """One row per replica of the later answer of /status; rates from the difference to the earlier one."""
    table = new_table(NAME_COLUMNS, LOAD_COLUMNS)
    seconds = after["uptime_s"] - before["uptime_s"]
    earlier = {replica["id"]: replica["stats"] for replica in before["replicas"]}
    for replica in after["replicas"]:
        name = (replica["id"], replica["role"], replica["state"])
        table.add_row(*name, *load_cells(replica["stats"], earlier.get(replica["id"]), seconds))
    return table


def new_table(words: Sequence[str], figures: Sequence[str]) -> Table:
    """An empty one, with the columns of figures to the right."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in words:
        table.add_column(column)
    for column in figures:
        table.add_column(column, justify="right")
    return table


def load_cells(stats: dict[str, Any] | None, earlier: dict[str, Any] | None, seconds: float) -> list[str]:
    """What a replica does, under LOAD_COLUMNS; rates from the difference to its earlier statistics."""
    if stats is None:
        return ["-"] * len(LOAD_COLUMNS)
    engine = stats["engine"]
    return [
        str(stats["num_running"]),
        str(stats["num_waiting"]),
        f"{stats['num_used_pages']}/{stats['num_pages']}",
        _rate("computed_prompt_tokens", engine, earlier, seconds),
        _rate("generated_tokens", engine, earlier, seconds),
        _share(engine["cached_prompt_tokens"], engine["prompt_tokens"]),
        f"{stats['resident_bytes'] / 2**20:.0f} MiB",
    ]


def _rate(counter: str, engine: dict[str, Any], earlier: dict[str, Any] | None, seconds: float) -> str:
    if earlier is None or seconds <= 0:
        return "-"
    return f"{(engine[counter] - earlier['engine'][counter]) / seconds:.1f}"


def _share(part: int, whole: int) -> str:
    return f"{100 * part / whole:.0f} %" if whole else "-"
