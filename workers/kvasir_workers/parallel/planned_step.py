"""A step as the ranks of a gang hear of it: numbers, and no word of requests."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from kvasir_protocol.errors import WireError
from kvasir_protocol.ids import PageIndex
from kvasir_protocol.messages import RunStep
from kvasir_workers.kv.manager import PageCopy
from kvasir_workers.runner.batch import Numbers, StepArrays
from kvasir_workers.step_plan import StepPlan

_INT32 = np.dtype("<i4")


@dataclass(frozen=True, slots=True)
class PlannedStep:
    """copies are made before anything is computed. num_shown: [S], rows of each sequence that a prompt reader sees."""

    arrays: StepArrays
    num_shown: Numbers
    copies: tuple[PageCopy, ...] = ()

    @classmethod
    def of(cls, plan: StepPlan, arrays: StepArrays) -> "PlannedStep":
        num_shown = [
            max(0, min(entry.num_new, entry.sequence.num_prompt_tokens - entry.start))
            if entry.sequence.prompt_reader is not None
            else 0
            for entry in plan.entries
        ]
        return cls(arrays, np.array(num_shown, dtype=np.int64), plan.copies)

    @property
    def num_sampled(self) -> int:
        return int(self.arrays.samples.sum())

    @property
    def is_shown(self) -> bool:
        """Some reader wants to see rows of it."""
        return bool(self.num_shown.any())

    def wanted_rows(self) -> Numbers:
        """Rows of the last hidden states that the leader asks for: those that sample, then those that are shown.

        One at least: when it comes, every stage has computed the step, and its pages may go to somebody else.
        """
        counts = self.arrays.counts
        ends = np.cumsum(counts)
        sampled = ends[self.arrays.samples] - 1
        if not self.is_shown:
            return sampled if len(sampled) else ends[-1:] - 1
        first_rows = ends - counts
        shown = [np.arange(first, first + num) for first, num in zip(first_rows, self.num_shown, strict=True)]
        return np.concatenate([sampled, *shown])


def to_message(step: PlannedStep, page_size: int, number: int) -> RunStep:
    arrays = step.arrays
    is_page = np.arange(arrays.tables.shape[1]) < _num_pages(arrays.starts, arrays.counts, page_size)[:, None]
    copies = [(copy.source, copy.target, copy.num_tokens) for copy in step.copies]
    return RunStep(
        number=number,
        token_ids=_pack(arrays.token_ids),
        coming=_pack(arrays.coming),
        starts=_pack(arrays.starts),
        counts=_pack(arrays.counts),
        samples=_pack(arrays.samples),
        num_shown=_pack(step.num_shown),
        pages=_pack(arrays.tables[is_page]),
        copies=_pack(np.array(copies, dtype=np.int64)),
    )


def from_message(message: RunStep, page_size: int) -> PlannedStep:
    """Raises WireError if its parts do not fit each other."""
    starts, counts = _unpack("starts", message.starts), _unpack("counts", message.counts)
    samples, num_shown = _unpack("samples", message.samples), _unpack("num_shown", message.num_shown)
    token_ids, copies = _unpack("token_ids", message.token_ids), _unpack("copies", message.copies)
    coming, pages = _unpack("coming", message.coming), _unpack("pages", message.pages)
    fits = len(starts) == len(counts) == len(samples) == len(num_shown) > 0
    fits = fits and bool((counts > 0).all() and (starts >= 0).all() and counts.sum() == len(token_ids))
    num_pages = _num_pages(starts, counts, page_size) if fits else np.zeros(1, dtype=np.int64)
    if not fits or len(copies) % 3 or len(coming) % 2 or num_pages.sum() != len(pages):
        raise WireError(f"a step of {len(starts)} sequences and {len(token_ids)} tokens, whose parts do not fit")
    tables = np.zeros((len(starts), num_pages.max()), dtype=np.int64)
    tables[np.arange(tables.shape[1]) < num_pages[:, None]] = pages
    arrays = StepArrays(
        token_ids=token_ids,
        coming=coming.reshape(2, -1),
        starts=starts,
        counts=counts,
        samples=samples.astype(np.bool_),
        tables=tables,
    )
    return PlannedStep(arrays, num_shown, tuple(_page_copies(copies.reshape(-1, 3).tolist())))


def _page_copies(rows: Sequence[Sequence[int]]) -> list[PageCopy]:
    return [PageCopy(PageIndex(source), PageIndex(target), num_tokens) for source, target, num_tokens in rows]


def _num_pages(starts: Numbers, counts: Numbers, page_size: int) -> Numbers:
    return -(-(starts + counts) // page_size)


def _pack(values: NDArray[np.generic]) -> bytes:
    return values.astype(_INT32).tobytes()


def _unpack(name: str, content: bytes) -> Numbers:
    if len(content) % _INT32.itemsize:
        raise WireError(f"{name} has {len(content)} bytes, which is no number of int32")
    return np.frombuffer(content, dtype=_INT32).astype(np.int64)
