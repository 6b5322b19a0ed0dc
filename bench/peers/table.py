"""The runs of all rounds as tables: a row for each peer, a column for each cell."""

from collections.abc import Callable, Sequence
from typing import Any

from bench.figures import spread
from bench.peers.cells import Cell, Run

FIGURES: tuple[tuple[str, str, int], ...] = (
    ("output tokens per second", "output_throughput", 0),
    ("median time to first token, ms", "median_ttft_ms", 0),
    ("median time per output token, ms", "median_tpot_ms", 2),
)

WIDTH, NAME_WIDTH = 26, 24


def tables(runs: Sequence[Run], cells: Sequence[Cell]) -> str:
    """Median of the rounds, and between what all lie. A peer that is missing has one row that says so."""
    parts = []
    for model in dict.fromkeys(run.model for run in runs):
        of_model = [run for run in runs if run.model == model]
        parts += [_table(f"{model}: {title}", of_model, cells, key, digits) for title, key, digits in FIGURES]
        parts.append("\n".join([f"{model}: problems and neighbours", *_notes(of_model)]))
    return "\n\n".join(parts)


def _table(title: str, runs: Sequence[Run], cells: Sequence[Cell], key: str, digits: int) -> str:
    lines = [
        title,
        f"{'prompt/answer, at once':{NAME_WIDTH}}" + "".join(f"{_head(cell):>{WIDTH}}" for cell in cells),
    ]
    for peer, of_peer in _by_peer(runs).items():
        if not any(run.results for run in of_peer):
            lines.append(f"{peer:{NAME_WIDTH}}  {of_peer[0].problem}")
            continue
        columns = (_column(of_peer, cell, lambda result: result[key], digits) for cell in cells)
        lines.append(f"{peer:{NAME_WIDTH}}" + "".join(f"{column:>{WIDTH}}" for column in columns))
    return "\n".join(lines)


def _head(cell: Cell) -> str:
    return f"{cell.shape.name}, {cell.concurrency}"


def _column(runs: Sequence[Run], cell: Cell, figure: Callable[[dict[str, Any]], float], digits: int) -> str:
    measured = [run.results[cell] for run in runs if cell in run.results]
    values = [figure(result) for result in measured if result["completed"]]
    return spread(values, digits) if values else "-"


def _by_peer(runs: Sequence[Run]) -> dict[str, list[Run]]:
    by_peer: dict[str, list[Run]] = {}
    for run in runs:
        by_peer.setdefault(run.peer, []).append(run)
    return by_peer


def _notes(runs: Sequence[Run]) -> list[str]:
    notes = []
    for peer, of_peer in _by_peer(runs).items():
        results = [result for run in of_peer for result in run.results.values()]
        notes += [f"{peer}: {run.problem}" for run in of_peer if run.problem is not None][:1]
        if ready := [run.ready_s for run in of_peer if run.ready_s is not None]:
            notes.append(f"{peer}: ready after {spread(ready, 1)} s")
        if results:
            failed = sum(result["failed"] for result in results)
            others = 100 * max(result["others_share"] for result in results)
            notes.append(f"{peer}: {failed} failed requests; others took up to {others:.0f} % of the cores")
    return notes
