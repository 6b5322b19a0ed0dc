"""What was measured, and how it is shown."""

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

OURS = "ours"


@dataclass(frozen=True, slots=True)
class Figure:
    """One way of one computation. seconds: None where it could not be measured, and `note` says why.

    num_bytes, num_operations: what it has to move and to compute at the least.
    """

    part: str
    case: str
    way: str
    seconds: float | None
    num_bytes: float = 0.0
    num_operations: float = 0.0
    note: str = ""


@dataclass(frozen=True, slots=True)
class Ceilings:
    """Bytes, and operations of matrix products, per second; 0 where the device has no such product."""

    copy: float
    bfloat16: float
    float8: float

    def floor(self, figure: Figure) -> float:
        """Seconds that it takes at the least; products in float8 are known by their part."""
        products = self.float8 if "FP8" in figure.part and self.float8 else self.bfloat16
        return max(figure.num_bytes / self.copy, figure.num_operations / products)


def rows(figures: Iterable[Figure], ceilings: Ceilings) -> list[str]:
    """One line per case: our time, its share of the ceiling, and the time of the best other way by ours."""
    cases: dict[tuple[str, str], dict[str, Figure]] = {}
    for figure in figures:
        cases.setdefault((figure.part, figure.case), {})[figure.way] = figure
    lines = [f"{'part':21} {'case':34} {'us':>10} {'% ceiling':>10}  best other (its time / ours)"]
    for (part, case), ways in cases.items():
        ours = ways[OURS]
        others = [figure for way, figure in ways.items() if way != OURS and figure.seconds]
        if ours.seconds is None:
            lines.append(f"{part:21} {case:34} {'-':>10} {'-':>10}  {ours.note}")
            continue
        share = 100 * ceilings.floor(ours) / ours.seconds
        best = min(others, key=lambda figure: figure.seconds or 0.0, default=None)
        beside = f"{best.way} {(best.seconds or 0.0) / ours.seconds:.2f}" if best else "-"
        lines.append(f"{part:21} {case:34} {1e6 * ours.seconds:10.1f} {share:10.0f}  {beside}")
    return lines


def save(folder: Path, about: dict[str, str], ceilings: Ceilings, figures: Iterable[Figure]) -> Path:
    """Everything as gpu.json in the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "gpu.json"
    content = {"about": about, "ceilings": asdict(ceilings), "figures": [asdict(figure) for figure in figures]}
    path.write_text(json.dumps(content, indent=1) + "\n")
    return path
