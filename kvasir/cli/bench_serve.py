"""`kvasir bench serve`: from flags to a measured run, a table, a file and pictures."""

import argparse
import asyncio
import os
import resource
import signal
import sys
from dataclasses import asdict
from datetime import datetime
from functools import partial
from typing import Any

import uvloop
from rich.console import Console
from tqdm import tqdm

from kvasir.bench.ceiling import Ceiling, measure_ceiling, stub_process
from kvasir.bench.client import Target
from kvasir.bench.drive import Outcome
from kvasir.bench.http_client import Origin
from kvasir.bench.metrics import Wanted
from kvasir.bench.plots import check_matplotlib, write_plots
from kvasir.bench.records import Record
from kvasir.bench.report import ceiling_notes, print_result
from kvasir.bench.results import file_name, rate_in_json, save
from kvasir.bench.serve import ServeBench, count_answers, make_warm_up, result_of
from kvasir.bench.workloads import TextSource
from kvasir.cli.bench_settings import read_pairs, read_traffic, read_wanted
from kvasir.cli.bench_workload import check_sizes, describe_workload, find_text_source, ignores_eos, make_workload
from kvasir.cli.server_api import ServerApi

INTERRUPTED = 130

PLAIN_WIDTH = 120


def bench_serve(options: argparse.Namespace) -> int:
    """1 if every request failed, 130 if it was interrupted. Raises KvasirError."""
    check_sizes(options)
    wanted = read_wanted(options)
    if options.plot is not None:
        check_matplotlib()
    bench, source = _prepare(options)
    _allow_many_connections()
    ceiling, outcome = uvloop.run(_measure(bench, options))
    outcome = count_answers(outcome, source)
    head = _head(options, bench, describe_workload(options, source))
    result = {**head, **result_of(outcome, wanted)}
    if ceiling is not None:
        result["ceiling"] = asdict(ceiling)
    _show(result, wanted, ceiling)
    _keep(options, result, outcome)
    if outcome.was_stopped:
        return INTERRUPTED
    return 0 if result["completed"] else 1


def _prepare(options: argparse.Namespace) -> tuple[ServeBench, TextSource]:
    url = options.base_url or f"http://{options.host}:{options.port}"
    origin = Origin.from_url(url)
    key = options.api_key or os.environ.get("KVASIR_API_KEY") or os.environ.get("OPENAI_API_KEY")
    server = ServerApi(url, key)
    model = options.model or server.first_model()
    source = find_text_source(options.tokenizer, partial(server.count_tokens, model))
    headers = {"authorization": f"Bearer {key}"} if key else {}
    extra_body = {} if options.temperature is None else {"temperature": options.temperature}
    target = Target(
        origin=origin,
        model=model,
        is_chat=options.backend == "openai-chat",
        path=options.endpoint,
        headers={**headers, **read_pairs(options.header, "--header")},
        extra_body={**extra_body, **options.extra_body},
        ignore_eos=ignores_eos(options),
        timeout_s=options.request_timeout,
    )
    traffic = read_traffic(options)
    conversations = make_workload(options, source)
    bench = ServeBench(
        target=target,
        conversations=conversations,
        traffic=traffic,
        seed=options.seed,
        max_concurrency=options.max_concurrency,
        warm_up=make_warm_up(conversations, options.num_warmups, source),
    )
    return bench, source


def _allow_many_connections() -> None:
    """Each request under way is a file; most shells allow 1,024 unless asked."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


class _Bar:
    """How many are done and how many of these failed; redrawn at most once a second, for drawing takes time too."""

    def __init__(self, num_requests: int, *, is_shown: bool) -> None:
        self._bar = tqdm(total=num_requests, unit="req", mininterval=1.0, disable=None if is_shown else True)
        self._num_failed = 0

    def advance(self, record: Record) -> None:
        if record.failure is not None:
            self._num_failed += 1
            self._bar.set_postfix(failed=self._num_failed, refresh=False)
        self._bar.update()

    def close(self) -> None:
        self._bar.close()


async def _measure(bench: ServeBench, options: argparse.Namespace) -> tuple[Ceiling | None, Outcome]:
    ceiling = None
    plan = bench.plan()
    if options.ceiling:
        with stub_process() as url:
            concurrency = bench.max_concurrency or plan.num_requests
            ceiling = await measure_ceiling(url, bench.conversations[0], concurrency, is_chat=bench.target.is_chat)
    stop, loop = asyncio.Event(), asyncio.get_running_loop()

    def interrupt() -> None:
        """The first Ctrl-C ends the run with what it has; a second one ends everything."""
        stop.set()
        loop.remove_signal_handler(signal.SIGINT)

    loop.add_signal_handler(signal.SIGINT, interrupt)
    bar = _Bar(plan.num_requests, is_shown=not options.disable_tqdm)
    try:
        return ceiling, await bench.run(stop, bar)
    finally:
        bar.close()
        loop.remove_signal_handler(signal.SIGINT)


def _head(options: argparse.Namespace, bench: ServeBench, workload: dict[str, Any]) -> dict[str, Any]:
    ramp = bench.traffic.ramp
    head = {
        "date": datetime.now().strftime("%Y%m%d-%H%M%S"),
        "endpoint_type": options.backend,
        "backend": options.backend,
        "label": options.label,
        "model_id": bench.target.model,
        "tokenizer_id": None if options.tokenizer is None else str(options.tokenizer),
        "num_prompts": len(bench.conversations),
        **read_pairs(options.metadata, "--metadata"),
        "request_rate": rate_in_json(bench.traffic.request_rate),
        "burstiness": bench.traffic.burstiness,
        "max_concurrency": bench.max_concurrency,
        "workload": workload,
    }
    if ramp is not None:
        head |= {
            "ramp_up_strategy": ramp.strategy,
            "ramp_up_start_rps": ramp.start_rps,
            "ramp_up_end_rps": ramp.end_rps,
        }
    return head


def _show(result: dict[str, Any], wanted: Wanted, ceiling: Ceiling | None) -> None:
    console = Console(highlight=False)
    if not console.is_terminal:
        console.width = PLAIN_WIDTH
    print_result(console, result, wanted.metrics)
    for note in [] if ceiling is None else ceiling_notes(ceiling, result):
        console.print(note, markup=False, soft_wrap=True)


def _keep(options: argparse.Namespace, result: dict[str, Any], outcome: Outcome) -> None:
    if options.save_result or options.save_detailed:
        label = options.label or options.backend
        name = options.result_filename or file_name(
            label, options.request_rate, options.max_concurrency, result["model_id"], result["date"]
        )
        path = options.result_dir / name
        save(result, path, detailed=options.save_detailed)
        print(f"saved {path}", file=sys.stderr)
    if options.plot is not None:
        for path in write_plots(outcome.records, options.plot):
            print(f"drew {path}", file=sys.stderr)
