"""What `python -m bench.peers` can be told, and what follows from it."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from bench.peers import __doc__ as about
from bench.peers.cells import CELLS, HEADLINE, Cell
from bench.peers.launch import Peer, Programs, all_peers, other_peer

HOME = Path.home() / ".cache" / "kvasir" / "peers"


def read_options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m bench.peers", description=about, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--home", type=Path, default=HOME, help="what bench/peers/setup made (%(default)s)")
    add("--transformers-venv", type=Path, metavar="DIR", help="default: HOME/transformers")
    add("--vllm-venv", type=Path, metavar="DIR", help="default: HOME/vllm")
    add("--llama-server", type=Path, metavar="FILE", help="default: HOME/llama.cpp/llama-server")
    add("--models", nargs="+", default=["a", "b"], metavar="M", help="folders, or names in HOME/models (a b)")
    add("--peers", metavar="LIST", help="names, by commas (default: all)")
    add("--also", action="append", default=[], metavar="NAME=COMMAND", help="another; {port}, {model}, {threads} in it")
    add("--threads", type=int, nargs="+", default=[2], metavar="N", help="of each server: for all models, or for each")
    add("--rounds", type=int, default=3, help="(%(default)s)")
    add("--cells", nargs="+", metavar="CELL", help=f"of {' '.join(cell.name for cell in CELLS)} (all), or headline")
    add("--per-place", type=int, default=2, metavar="N", help="requests for each that runs at once (%(default)s)")
    add("--warmups", type=int, default=2, metavar="N", help="requests before each cell (%(default)s)")
    add(
        "--limit-s",
        type=float,
        default=60.0,
        metavar="S",
        help="for one cell; more is cut, in every round (%(default)s)",
    )
    add("--output", type=Path, metavar="DIR", help="write runs.json and tables.md there, after every start")
    return parser.parse_args(arguments)


def chosen_peers(options: argparse.Namespace) -> list[Peer]:
    """Exits with a line for what is no peer."""
    home = options.home
    programs = Programs(
        transformers_venv=options.transformers_venv or home / "transformers",
        vllm_venv=options.vllm_venv or home / "vllm",
        llama_server=options.llama_server or home / "llama.cpp" / "llama-server",
    )
    if wrong := [also for also in options.also if "=" not in also]:
        sys.exit(f"--also: {wrong[0]!r} is not NAME=COMMAND")
    peers = all_peers(programs) + [other_peer(*also.split("=", 1)) for also in options.also]
    if options.peers is None:
        return peers
    names = options.peers.split(",")
    if unknown := sorted(set(names) - {peer.name for peer in peers}):
        known = ", ".join(peer.name for peer in peers)
        sys.exit(f"--peers: no peer {', '.join(unknown)}; there are {known}")
    return [peer for peer in peers if peer.name in names]


def chosen_cells(options: argparse.Namespace) -> list[Cell]:
    """Exits with a line for what is no cell."""
    names = options.cells or [cell.name for cell in CELLS]
    if names == ["headline"]:
        names = list(HEADLINE)
    if unknown := sorted(set(names) - {cell.name for cell in CELLS}):
        sys.exit(f"--cells: no cell {', '.join(unknown)}; there are {', '.join(cell.name for cell in CELLS)}")
    return [cell for cell in CELLS if cell.name in names]


def chosen_models(options: argparse.Namespace) -> list[tuple[Path, int]]:
    """Folders, and the threads of servers that load them. Exits with a line where there is no model."""
    threads = options.threads * len(options.models) if len(options.threads) == 1 else options.threads
    if len(threads) != len(options.models):
        sys.exit(f"--threads: {len(options.threads)} numbers for {len(options.models)} models; give one, or one each")
    folders = [options.home / "models" / name if "/" not in name else Path(name) for name in options.models]
    for folder in folders:
        if not (folder / "config.json").is_file():
            sys.exit(f"no model in {folder}; make one with bench/peers/setup, or give --models")
    return [(folder.absolute(), number) for folder, number in zip(folders, threads, strict=True)]
