"""`kvasir status`: the replicas of a running server, in a table."""

import time
from typing import Any

from rich.console import Console
from rich.table import Table

from kvasir.cli.server_api import ServerApi

SAMPLE_S = 1.0
"""Between the two looks from which tokens per second are told."""

PLAIN_WIDTH = 120

COLUMNS = ("replica", "role", "state", "running", "waiting", "pages", "prompt tok/s", "new tok/s", "cached", "memory")


def show_status(url: str, api_key: str | None) -> int:
    """Print it. Raises KvasirError when the server can't be asked."""
    server = ServerApi(url, api_key)
    before = server.status()
    time.sleep(SAMPLE_S)
    after = server.status()
    console = Console(highlight=False)
    if not console.is_terminal:
        console.width = PLAIN_WIDTH
    view = after["view"]
    console.print(
        f"{after['model']} at {url}: {view['phase']}, up for {after['uptime_s']:.0f} s, "
        f"{after['num_inflight']} streams, context of {after['max_model_len']} tokens",
        markup=False,
    )
    console.print(make_table(before, after))
    return 0


def make_table(before: dict[str, Any], after: dict[str, Any]) -> Table:
    """One row per replica of the later answer of /status; rates from the difference to the earlier one."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    for index, column in enumerate(COLUMNS):
        table.add_column(column, justify="left" if index < 3 else "right")
    seconds = after["uptime_s"] - before["uptime_s"]
    earlier = {replica["id"]: replica["stats"] for replica in before["replicas"]}
    for replica in after["replicas"]:
        table.add_row(*_cells(replica, earlier.get(replica["id"]), seconds))
    return table


def _cells(replica: dict[str, Any], earlier: dict[str, Any] | None, seconds: float) -> list[str]:
    name = [replica["id"], replica["role"], replica["state"]]
    stats = replica["stats"]
    if stats is None:
        return name + ["-"] * (len(COLUMNS) - len(name))
    engine = stats["engine"]
    return [
        *name,
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
