"""`python -m bench.peers`: all peers, all cells, several rounds; tables in the end."""

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path

from bench.peers.cells import Asking, Cell, Run, run_peer
from bench.peers.launch import Launch, Peer
from bench.peers.options import chosen_cells, chosen_models, chosen_peers, read_options
from bench.peers.process import free_port
from bench.peers.table import tables
from kvasir.bench.results import DETAILS

OnRun = Callable[[Sequence[Run]], None]


def run_all(peers: Sequence[Peer], options: argparse.Namespace, asking: Asking, on_run: OnRun) -> list[Run]:
    """One server at a time; each round begins with another. on_run gets all runs so far, after each."""
    runs: list[Run] = []
    cut: set[tuple[str, str, Cell]] = set()
    order = [peer.name for peer in peers]
    started_s = time.monotonic()
    for model, threads in chosen_models(options):
        for round_index in range(options.rounds):
            shift = round_index % len(peers)
            for peer in [*peers[shift:], *peers[:shift]]:
                with tempfile.TemporaryDirectory() as scratch:
                    launch = Launch(model=model, port=free_port(), threads=threads, scratch=Path(scratch))
                    kept = [cell for cell in asking.cells if (peer.name, model.name, cell) not in cut]
                    run = run_peer(peer, launch, replace(asking, cells=kept), round_index)
                said = run.problem or f"ready after {run.ready_s:.1f} s"
                said += f" [{(time.monotonic() - started_s) / 60:.1f} min]"
                print(f"{model.name}, round {round_index + 1}, {peer.name}: {said}", file=sys.stderr)
                # What takes too long once would take all rounds' time.
                cut |= {(peer.name, model.name, cell) for cell, result in run.results.items() if result["interrupted"]}
                runs.append(run)
                runs.sort(key=lambda run: order.index(run.peer))
                on_run(runs)
    return runs


def write_runs(runs: Sequence[Run], path: Path) -> None:
    """Without what each single request did."""
    told = [
        {
            "peer": run.peer,
            "model": run.model,
            "ready_s": run.ready_s,
            "page_bytes": run.page_bytes,
            "ready_bytes": run.ready_bytes,
            "used_bytes": run.used_bytes,
            "problem": run.problem,
            "cells": [
                {**asdict(cell), **{key: value for key, value in result.items() if key not in DETAILS}}
                for cell, result in run.results.items()
            ],
        }
        for run in runs
    ]
    path.write_text(json.dumps(told, indent=1) + "\n")


def weight_bytes(model: Path) -> int:
    return sum(file.stat().st_size for file in model.glob("*.safetensors"))


def main(arguments: Sequence[str] | None = None) -> None:
    options = read_options(arguments)
    peers, cells = chosen_peers(options), chosen_cells(options)
    weights = {model.name: weight_bytes(model) for model, _ in chosen_models(options)}
    asking = Asking(cells=cells, num_per_place=options.per_place, num_warmups=options.warmups, limit_s=options.limit_s)
    if options.output is not None:
        options.output.mkdir(parents=True, exist_ok=True)
    runs = run_all(peers, options, asking, lambda runs: _keep(runs, cells, weights, options.output))
    print(tables(runs, cells, weights))


def _keep(runs: Sequence[Run], cells: Sequence[Cell], weights: dict[str, int], folder: Path | None) -> None:
    if folder is not None:
        write_runs(runs, folder / "runs.json")
        (folder / "tables.md").write_text(tables(runs, cells, weights) + "\n")


if __name__ == "__main__":
    main()
