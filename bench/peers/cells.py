"""What every peer is asked, and one run of it."""

import asyncio
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import uvloop

from bench.peers.launch import Launch, Peer
from bench.peers.process import PeerFailed, running
from bench.peers.usage import busy_seconds_of_host, cpu_seconds_of_tree, memory_of_tree
from kvasir.bench.arrivals import Traffic
from kvasir.bench.client import Target
from kvasir.bench.drive import Outcome
from kvasir.bench.http_client import Origin
from kvasir.bench.metrics import Wanted
from kvasir.bench.records import Record
from kvasir.bench.serve import ServeBench, count_answers, make_warm_up, result_of
from kvasir.bench.text_source import CountedWords, words_of_tokenizer
from kvasir.bench.workloads import Lengths, random_prompts
from kvasir_protocol.errors import ServiceUnavailable

MIN_REQUESTS = 8

CONCURRENCIES = (1, 8, 32)


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """Tokens: common to all prompts, of each prompt alone, and of each answer. name: shared+unique/output."""

    name: str
    shared: int
    unique: int
    output: int


SHAPES = (
    Shape(name="128/64", shared=0, unique=128, output=64),
    Shape(name="1000+32/32", shared=1000, unique=32, output=32),
)


@dataclass(frozen=True, slots=True)
class Cell:
    """A shape, and how many requests run at once."""

    shape: Shape
    concurrency: int

    @property
    def name(self) -> str:
        return f"{self.shape.name}@{self.concurrency}"


CELLS = tuple(Cell(shape, concurrency) for shape in SHAPES for concurrency in CONCURRENCIES)

HEADLINE = ("128/64@1", "128/64@32", "1000+32/32@8")


@dataclass(frozen=True, slots=True, kw_only=True)
class Asking:
    """num_per_place: requests of a cell for each that runs at once. limit_s: for one cell; what has not been answered
    then is cut."""

    cells: Sequence[Cell]
    num_per_place: int
    num_warmups: int
    limit_s: float

    def num_requests(self, cell: Cell) -> int:
        return max(MIN_REQUESTS, self.num_per_place * cell.concurrency)


@dataclass(slots=True)
class Run:
    """One start of one peer.

    results: by cell, as `kvasir bench serve` has them, and `others_share`: the part of the host's cores that neither
    server nor client used. ready_bytes, used_bytes: physical memory of all its processes when it was ready (page_bytes
    of it for keys and values), and after the last cell. problem: why there are no results, or not all.
    """

    peer: str
    model: str
    ready_s: float | None = None
    page_bytes: int = 0
    ready_bytes: int | None = None
    used_bytes: int | None = None
    results: dict[Cell, dict[str, Any]] = field(default_factory=dict)
    problem: str | None = None


class _Nobody:
    def advance(self, record: Record) -> None:
        """Nobody watches."""


def run_peer(peer: Peer, launch: Launch, asking: Asking, round_index: int) -> Run:
    """Start it, ask all cells, stop it. Whatever goes wrong is the run's problem, never an error."""
    run = Run(peer.name, launch.model.name)
    if (missing := peer.missing(launch)) is not None:
        run.problem = f"not installed (no {missing})"
        return run
    source = words_of_tokenizer(launch.model)
    try:
        with running(peer, launch) as (process, run.ready_s):
            memory = memory_of_tree(process.pid)
            run.ready_bytes = memory.num_bytes
            run.page_bytes = memory.shared_memory_bytes if peer.shares_pages else peer.page_bytes(launch)
            for cell in asking.cells:
                bench = make_bench(peer, launch, cell, asking, source, seed_of(round_index, cell))
                run.results[cell] = measure(bench, source, process.pid, asking.limit_s)
                if process.poll() is not None:
                    raise PeerFailed(f"died with exit code {process.returncode}")
                run.used_bytes = memory_of_tree(process.pid).num_bytes
    except (PeerFailed, ServiceUnavailable, OSError) as error:
        run.problem = f"failed: {error}"
    return run


def seed_of(round_index: int, cell: Cell) -> int:
    """No two cells of any rounds ask the same: whatever a server keeps, it has not seen these prompts."""
    return 1000 * round_index + CELLS.index(cell)


def make_bench(peer: Peer, launch: Launch, cell: Cell, asking: Asking, source: CountedWords, seed: int) -> ServeBench:
    """The same seed asks every peer the same."""
    shape = cell.shape
    lengths = Lengths(input_len=shape.unique, output_len=shape.output)
    conversations = random_prompts(asking.num_requests(cell), lengths, source, seed, shape.shared)
    target = Target(
        origin=Origin.from_url(f"http://127.0.0.1:{launch.port}"),
        model=peer.served_name(launch),
        ignore_eos=peer.ignores_eos,
        extra_body={"temperature": 0},
    )
    return ServeBench(
        target=target,
        conversations=conversations,
        traffic=Traffic(),
        max_concurrency=cell.concurrency,
        warm_up=make_warm_up(conversations, asking.num_warmups, source),
    )


def measure(bench: ServeBench, source: CountedWords, server: int, limit_s: float) -> dict[str, Any]:
    """What a cell's results are in a Run; server: the process above all of its processes."""

    def used() -> float:
        return busy_seconds_of_host() - cpu_seconds_of_tree(server) - time.process_time()

    before_s, started_s = used(), time.monotonic()
    outcome = count_answers(uvloop.run(_run_within(bench, limit_s)), source)
    cores_s = (time.monotonic() - started_s) * (os.cpu_count() or 1)
    result = result_of(outcome, Wanted(metrics=("ttft", "tpot", "itl", "e2el"), percentiles=(50, 99)))
    return {**result, "others_share": max(0.0, used() - before_s) / cores_s}


async def _run_within(bench: ServeBench, limit_s: float) -> Outcome:
    stop = asyncio.Event()
    timer = asyncio.get_running_loop().call_later(limit_s, stop.set)
    try:
        return await bench.run(stop, _Nobody())
    finally:
        timer.cancel()
