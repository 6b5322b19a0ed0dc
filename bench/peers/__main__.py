"""`python -m bench.peers`: all peers, all cells, several rounds; tables in the end."""

import argparse
import json
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from bench.peers import __doc__ as about
from bench.peers.cells import SHAPES, Asking, Cell, Run, run_peer
from bench.peers.launch import Launch, Peer, Programs, all_peers, other_peer
from bench.peers.process import free_port
from bench.peers.table import tables
from kvasir.bench.results import DETAILS


def read_options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m bench.peers", description=about, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--home", type=Path, default=Path("peers"), help="what bench/peers/setup made (%(default)s)")
    add("--transformers-venv", type=Path, metavar="DIR", help="default: HOME/transformers")
    add("--vllm-venv", type=Path, metavar="DIR", help="default: HOME/vllm")
    add("--llama-server", type=Path, metavar="FILE", help="default: HOME/llama.cpp/llama-server")
    add("--model", type=Path, nargs="+", metavar="DIR", help="default: HOME/models/a and HOME/models/b")
    add("--only", metavar="LIST", help="names of peers, by commas (default: all)")
    add("--also", action="append", default=[], metavar="NAME=COMMAND", help="another; {port}, {model}, {threads} in it")
    add("--threads", type=int, default=2, help="of each server (%(default)s)")
    add("--rounds", type=int, default=3, help="(%(default)s)")
    add("--concurrency", type=int, nargs="+", default=[1, 8, 32], metavar="N", help="(1 8 32)")
    add("--per-place", type=int, default=4, metavar="N", help="requests for each that runs at once (%(default)s)")
    add("--warmups", type=int, default=2, metavar="N", help="requests before each cell (%(default)s)")
    add("--output", type=Path, metavar="FILE", help="write every run as JSON")
    return parser.parse_args(arguments)


def chosen_peers(options: argparse.Namespace) -> list[Peer]:
    home = options.home
    programs = Programs(
        transformers_venv=options.transformers_venv or home / "transformers",
        vllm_venv=options.vllm_venv or home / "vllm",
        llama_server=options.llama_server or home / "llama.cpp" / "llama-server",
    )
    if wrong := [also for also in options.also if "=" not in also]:
        sys.exit(f"--also: {wrong[0]!r} is not NAME=COMMAND")
    peers = all_peers(programs) + [other_peer(*also.split("=", 1)) for also in options.also]
    if options.only is None:
        return peers
    names = options.only.split(",")
    if unknown := sorted(set(names) - {peer.name for peer in peers}):
        known = ", ".join(peer.name for peer in peers)
        sys.exit(f"--only: no peer {', '.join(unknown)}; there are {known}")
    return [peer for peer in peers if peer.name in names]


def run_all(peers: Sequence[Peer], options: argparse.Namespace, asking: Asking) -> list[Run]:
    """One server at a time; each round begins with another."""
    runs: list[Run] = []
    models = options.model or [options.home / "models" / "a", options.home / "models" / "b"]
    for model in models:
        if not (model / "config.json").is_file():
            sys.exit(f"no model in {model}; make one with bench/peers/setup, or give --model")
        for round_index in range(options.rounds):
            shift = round_index % len(peers)
            for peer in [*peers[shift:], *peers[:shift]]:
                with tempfile.TemporaryDirectory() as scratch:
                    launch = Launch(
                        model=model.absolute(), port=free_port(), threads=options.threads, scratch=Path(scratch)
                    )
                    run = run_peer(peer, launch, asking, seed=round_index)
                said = run.problem or f"ready after {run.ready_s:.1f} s"
                print(f"{model.name}, round {round_index + 1}, {peer.name}: {said}", file=sys.stderr)
                runs.append(run)
    order = [peer.name for peer in peers]
    return sorted(runs, key=lambda run: order.index(run.peer))


def write_runs(runs: Sequence[Run], path: Path) -> None:
    """Without what each single request did."""
    told = [
        {
            "peer": run.peer,
            "model": run.model,
            "ready_s": run.ready_s,
            "problem": run.problem,
            "cells": [
                {**asdict(cell), **{key: value for key, value in result.items() if key not in DETAILS}}
                for cell, result in run.results.items()
            ],
        }
        for run in runs
    ]
    path.write_text(json.dumps(told, indent=1) + "\n")


def main(arguments: Sequence[str] | None = None) -> None:
    options = read_options(arguments)
    cells = [Cell(shape, concurrency) for shape in SHAPES for concurrency in options.concurrency]
    asking = Asking(cells=cells, num_per_place=options.per_place, num_warmups=options.warmups)
    runs = run_all(chosen_peers(options), options, asking)
    if options.output is not None:
        write_runs(runs, options.output)
    print(tables(runs, cells))


if __name__ == "__main__":
    main()
