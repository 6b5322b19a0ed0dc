"""The runs of all rounds as Markdown: a row for each peer, a column for each cell, and how this server compares."""

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from bench.figures import spread
from bench.peers.cells import Cell, Run

OURS = "kvasir"


@dataclass(frozen=True, slots=True)
class Figure:
    """key: in a cell's result."""

    title: str
    key: str
    digits: int
    is_more_better: bool = False


FIGURES = (
    Figure("output tokens per second", "output_throughput", 0, is_more_better=True),
    Figure("time to first token, median, ms", "p50_ttft_ms", 0),
    Figure("time to first token, 99th percentile, ms", "p99_ttft_ms", 0),
    Figure("time per output token, median, ms", "median_tpot_ms", 2),
)

MIB = 2**20


def tables(runs: Sequence[Run], cells: Sequence[Cell], weight_bytes: Mapping[str, int]) -> str:
    """Median of the rounds, and between what all lie. A peer that is missing has one row that says so.

    weight_bytes: of each model's checkpoint.
    """
    parts = []
    for model in dict.fromkeys(run.model for run in runs):
        of_model = by_peer([run for run in runs if run.model == model])
        parts += [_table(f"{model}: {figure.title}", of_model, cells, figure) for figure in FIGURES]
        parts.append(_starts(f"{model}: start and memory", of_model, weight_bytes[model]))
        parts.append("\n".join([f"{model}: problems and neighbours", "", *_notes(of_model)]))
    return "\n\n".join(parts)


def by_peer(runs: Sequence[Run]) -> dict[str, list[Run]]:
    """Runs of each peer, in the order of their first."""
    found: dict[str, list[Run]] = {}
    for run in runs:
        found.setdefault(run.peer, []).append(run)
    return found


def _markdown(title: str, head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = ["| " + " | ".join(row) + " |" for row in (head, ["---"] * len(head), *rows)]
    return "\n".join([title, "", *lines])


def _table(title: str, peers: Mapping[str, Sequence[Run]], cells: Sequence[Cell], figure: Figure) -> str:
    rows = []
    for peer, runs in peers.items():
        if any(run.results for run in runs):
            rows.append([peer, *(_cell_text(runs, cell, figure) for cell in cells)])
        else:
            rows.append([peer, runs[0].problem or "", *[""] * (len(cells) - 1)])
    if OURS in peers and len(peers) > 1:
        medians = [_medians(peers, cell, figure) for cell in cells]
        rows.append([f"{OURS} / best other", *(ratio_text(of_cell, figure, _best) for of_cell in medians)])
        rows.append([f"{OURS} / median other", *(ratio_text(of_cell, figure, _middle) for of_cell in medians)])
    return _markdown(title, ["", *(cell.name for cell in cells)], rows)


def _values(runs: Sequence[Run], cell: Cell, figure: Figure) -> list[float]:
    """Who gave nothing whole, until a cell was cut, has made no tokens a second, and no times are known of it."""
    measured = [run.results[cell] for run in runs if cell in run.results]
    return [result[figure.key] for result in measured if result["completed"] or figure.is_more_better]


def _medians(peers: Mapping[str, Sequence[Run]], cell: Cell, figure: Figure) -> dict[str, float]:
    """Of those that were asked; of times, where at least half of the requests were answered: else they are the times of
    those who came first."""
    measured = {
        peer: _values([run for run in runs if figure.is_more_better or _answers_half(run, cell)], cell, figure)
        for peer, runs in peers.items()
    }
    return {peer: statistics.median(values) for peer, values in measured.items() if values}


def _answers_half(run: Run, cell: Cell) -> bool:
    result = run.results.get(cell)
    if result is None:
        return False
    num_unanswered = result["failed"] + result["aborted"] + result["not_sent"]
    return bool(result["completed"] >= num_unanswered)


def _cell_text(runs: Sequence[Run], cell: Cell, figure: Figure) -> str:
    """A star where a round was cut: only whole answers count there."""
    values = _values(runs, cell, figure)
    was_cut = any(run.results[cell]["interrupted"] for run in runs if cell in run.results)
    return _spread_or_dash(values, figure.digits) + ("*" if was_cut else "")


def _best(values: Sequence[float], figure: Figure) -> float:
    return max(values) if figure.is_more_better else min(values)


def _middle(values: Sequence[float], figure: Figure) -> float:
    del figure
    return statistics.median(values)


def ratio_text(medians: Mapping[str, float], figure: Figure, reduce: Callable[[Sequence[float], Figure], float]) -> str:
    """Ours by what the others' medians are reduced to."""
    others = [value for peer, value in medians.items() if peer != OURS]
    if OURS not in medians or not others:
        return "-"
    reduced = reduce(others, figure)
    return f"{medians[OURS] / reduced:.2f}" if reduced else "-"


def _starts(title: str, peers: Mapping[str, Sequence[Run]], weight_bytes: int) -> str:
    """Memory is that of all processes together, when ready: weights, pages and the rest. Who maps a file and has not
    looked at it yet has less than its weights, and no rest that could be told."""
    head = [
        "",
        "seconds to ready",
        "MiB when ready",
        "of it weights",
        "of it pages",
        "of it the rest",
        "MiB in the end",
    ]
    rows = []
    for peer, runs in peers.items():
        started = [run for run in runs if run.ready_bytes is not None and run.ready_s is not None]
        beyond = [(run.ready_bytes or 0) - weight_bytes - run.page_bytes for run in started]
        rows.append(
            [
                peer,
                _spread_or_dash([run.ready_s or 0.0 for run in started], 1),
                _mib([run.ready_bytes or 0 for run in started]),
                _mib([weight_bytes]),
                _mib([run.page_bytes for run in started] or [0]),
                _mib([rest for rest in beyond if rest > 0]),
                _mib([run.used_bytes for run in started if run.used_bytes is not None]),
            ]
        )
    return _markdown(title, head, rows)


def _spread_or_dash(values: Sequence[float], digits: int) -> str:
    return spread(values, digits) if values else "-"


def _mib(sizes: Sequence[int]) -> str:
    """Of one value just that."""
    megabytes = [size / MIB for size in sizes]
    return f"{megabytes[0]:.0f}" if len(megabytes) == 1 else _spread_or_dash(megabytes, 0)


def _notes(peers: Mapping[str, Sequence[Run]]) -> list[str]:
    notes = []
    for peer, runs in peers.items():
        results = [result for run in runs for result in run.results.values()]
        notes += [f"- {peer}: {run.problem}" for run in runs if run.problem is not None][:1]
        if results:
            notes.append(f"- {peer}: {_note(results)}")
    return notes


def _note(results: Sequence[Mapping[str, Any]]) -> str:
    failed = sum(result["failed"] for result in results)
    cut = sum(bool(result["interrupted"]) for result in results)
    others = 100 * max(result["others_share"] for result in results)
    client = 100 * max(result["client_cpu_share"] for result in results)
    tokens = sum(result["total_input_tokens"] for result in results) / max(1, sum(r["completed"] for r in results))
    return (
        f"{failed} failed requests, {cut} cells cut; {tokens:.1f} prompt tokens a request; "
        f"others took up to {others:.0f} % of the cores, the client up to {client:.0f} % of one"
    )
