"""`kvasir status --address`: a whole cluster, from its controller and its routers."""

import argparse
import time
from typing import Any

from rich.console import Group, RenderableType
from rich.text import Text

from kvasir.cli.cluster_table import Snapshot, gang_table, headline, host_table, router_table
from kvasir.cli.server_api import ServerApi
from kvasir.cli.status import SAMPLE_S, show
from kvasir_cluster.connection import answer, connect, find_controller
from kvasir_cluster.hosts import list_hosts
from kvasir_cluster.report import ClusterReport
from kvasir_protocol.errors import KvasirError, ServiceUnavailable


def show_cluster(options: argparse.Namespace) -> int:
    """Print it, once or until Ctrl-C. Raises KvasirError when nobody can be asked."""
    with connect(options.address, options.name):
        controller = find_controller()
        if controller is None:
            raise ServiceUnavailable(f"there is no cluster {options.name!r} here; `kvasir up FILE` makes one")
        before = _look(controller, options.api_key)

        def look() -> RenderableType:
            nonlocal before
            earlier, before = before, _look(controller, options.api_key)
            tables = (gang_table(earlier, before), router_table(before), host_table(before))
            return Group(Text(headline(before)), *tables)

        time.sleep(SAMPLE_S)
        show(look, is_live=options.watch)
    return 0


def _look(controller: Any, api_key: str | None) -> Snapshot:
    report: ClusterReport = answer(controller.report.remote())
    urls = [router.url for _, router in report.progress.routers if router is not None and router.url]
    keys = (api_key, *report.wish.router.api_keys)
    status = next(filter(None, (_ask(url, next(filter(None, keys), None)) for url in urls)), None)
    return Snapshot(taken_at_s=time.monotonic(), report=report, hosts=tuple(list_hosts()), status=status)


def _ask(url: str, api_key: str | None) -> dict[str, Any] | None:
    """What a router knows; None where it can't be reached from here."""
    try:
        return ServerApi(url, api_key).status()
    except KvasirError:
        return None
