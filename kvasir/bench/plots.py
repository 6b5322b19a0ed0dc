"""A run as pictures, with matplotlib, which only this asks for."""

import math
from collections.abc import Sequence
from pathlib import Path

from kvasir.bench.metrics import Metric, tokens_by_second, values_of
from kvasir.bench.records import Record
from kvasir_protocol.errors import ConfigError


def check_matplotlib() -> None:
    """Raise ConfigError where it is missing: before the run, not after."""
    try:
        import matplotlib  # noqa: F401
    except ImportError as error:
        raise ConfigError("--plot needs matplotlib; install it: pip install matplotlib") from error


def write_plots(records: Sequence[Record], directory: Path) -> list[Path]:
    """ttft.png and itl.png (how many stay below each time), throughput.png (output tokens by second). Returns their
    paths; one without a value is not drawn."""
    done = [record for record in records if record.failure is None]
    directory.mkdir(parents=True, exist_ok=True)
    written = [
        _draw_share(values, name, directory / f"{name}.png")
        for name in _SHARES
        if (values := [1000 * value for value in values_of(done, name)])
    ]
    if by_second := tokens_by_second(done):
        written.append(_draw_throughput(by_second, directory / "throughput.png"))
    return written


_SHARES: dict[Metric, str] = {"ttft": "time to first token", "itl": "time between chunks"}


def cumulative_shares(values: Sequence[float]) -> tuple[list[float], list[float]]:
    """Ascending values, and the share of all values that does not exceed each."""
    ordered = sorted(values)
    return ordered, [(index + 1) / len(ordered) for index in range(len(ordered))]


def _draw_share(values_ms: Sequence[float], name: Metric, path: Path) -> Path:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 4), layout="constrained")
    histogram, cumulated = figure.subplots(1, 2)
    histogram.hist(values_ms, bins=max(10, min(100, math.isqrt(len(values_ms)))))
    histogram.set(xlabel=f"{_SHARES[name]}, ms", ylabel="number")
    cumulated.step(*cumulative_shares(values_ms), where="post")
    cumulated.set(xlabel=f"{_SHARES[name]}, ms", ylabel="share not above", xlim=(0, None), ylim=(0, 1))
    cumulated.grid(alpha=0.3)
    figure.savefig(path, dpi=120)
    return path


def _draw_throughput(by_second: Sequence[float], path: Path) -> Path:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 4), layout="constrained")
    axes = figure.subplots()
    axes.step(range(len(by_second)), by_second, where="post")
    axes.set(xlabel="seconds from the first request", ylabel="output tokens per second", ylim=(0, None))
    axes.grid(alpha=0.3)
    figure.savefig(path, dpi=120)
    return path
