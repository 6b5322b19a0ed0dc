"""Decode steps as graphs: recorded once for each of a grid of sizes, replayed with what each step puts in their place.

    host      [ plan ] -> packed message, pinned -------- one copy -------.
    device                                                                v
    graph of 8:   unpack (what the step before said is there already) -> layers -> logits[:8]
                                  ^                                                  |
                                  '--------------------- said <----------- sampling -'

A step of 5 takes the graph of 8: three rows are padding, which are written to no page, see nothing, and are not looked
at. Idea: CUDA graphs for decoding are everybody's; the grid is TensorRT-LLM's (its blog no. 20).
"""

from bisect import bisect_left
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from kvasir_kernels.paged_cache import LayerCache, PaddedDecodes
from kvasir_kernels.sampling_dispatch import DecodeInputs, unpack_decodes
from kvasir_kernels.unpack_decodes.reference import HEADER, packed_size
from kvasir_workers.model.decoder import Decoder
from kvasir_workers.runner.batch import StepArrays
from kvasir_workers.runner.device_copies import StagedMessages
from kvasir_workers.runner.recorder import Recorder, Work

_FINE_UNTIL, _FINE, _COARSE = 128, 8, 64

Compute = Callable[[DecodeInputs, PaddedDecodes], Tensor | None]
"""From the inputs of S rows to their logits: [S, V] float32; None at a rank of a gang that only helps with them."""


def graph_sizes(max_rows: int) -> tuple[int, ...]:
    """1, 2, 4, then every 8 to 128, then every 64, and the largest step itself."""
    grid = (1, 2, 4, *range(_FINE, _FINE_UNTIL, _FINE), *range(_FINE_UNTIL, max_rows, _COARSE))
    return (*(size for size in grid if size < max_rows), max_rows)


@dataclass(frozen=True, slots=True, kw_only=True)
class GraphLimits:
    """Of the largest step: sequences, and pages of a sequence; and what a page and a row of logits hold.

    vocab_size: 0 where no logits are computed.
    """

    max_rows: int
    max_pages: int
    page_size: int
    vocab_size: int


class DecodeGraphs:
    """The graphs of one model, and the memory that they read and write. One step at a time.

    inputs: the step's, valid until the next one runs. said: [S] int64, what the step before said; whoever samples
    writes it.
    """

    @torch.inference_mode()
    def __init__(self, compute: Compute, limits: GraphLimits, recorder: Recorder, device: torch.device) -> None:
        max_rows = limits.max_rows
        self.inputs = DecodeInputs.empty(max_rows, limits.max_pages, device)
        self.said = torch.zeros(max_rows, dtype=torch.int64, device=device)
        self._limits = limits
        self._compute = compute
        self._messages = StagedMessages(packed_size(max_rows, limits.max_pages), device)
        self._logits = torch.empty(max_rows, limits.vocab_size, dtype=torch.float32, device=device)
        self._send_nothing()
        self._sizes = graph_sizes(max_rows)
        # The largest first: the others find their memory in what it took.
        self._replays: dict[int, Work] = {
            size: recorder.record(f"{size} decodes", partial(self._step, size)) for size in reversed(self._sizes)
        }

    @property
    def num_graphs(self) -> int:
        return len(self._replays)

    def takes(self, step: StepArrays) -> bool:
        """Whether the step is one token of each of few enough sequences, which all say the next."""
        num_rows = len(step.counts)
        return num_rows <= self._limits.max_rows and len(step.token_ids) == num_rows and bool(step.samples.all())

    @torch.inference_mode()
    def run(self, step: StepArrays) -> Tensor:
        """The logits of a step that they take: [S, V] float32, valid until the next one runs."""
        num_rows = len(step.counts)
        self._send(step)
        self.replay(num_rows)
        return self._logits[:num_rows]

    def replay(self, num_rows: int) -> None:
        """Compute again what was sent last, in a graph of so many rows or more."""
        self._replays[self._sizes[bisect_left(self._sizes, num_rows)]]()

    def _step(self, size: int) -> None:
        """What is recorded: of the first `size` rows."""
        unpack_decodes(self._messages.there, self.said, size, self._limits.page_size, self.inputs)
        inputs = self.inputs.first(size)
        decodes = PaddedDecodes(inputs.context_lens, inputs.page_tables)
        logits = self._compute(inputs, decodes)
        if logits is not None:
            self._logits[:size].copy_(logits)

    def _send(self, step: StepArrays) -> None:
        """Write the packed message that unpack_decodes draws, and send what of it is used."""
        num_rows, width = step.tables.shape
        columns = HEADER + self._limits.max_rows * 3
        message = self._messages.buffer()
        message[:2] = num_rows, width
        token_ids, said_rows, positions = message[HEADER:columns].reshape(3, -1)[:, :num_rows]
        token_ids[:] = step.token_ids
        said_rows[:] = -1
        places, rows = step.coming
        said_rows[places] = rows
        positions[:] = step.starts
        message[columns : columns + step.tables.size] = step.tables.ravel()
        self._messages.send(columns + step.tables.size)

    def _send_nothing(self) -> None:
        """All rows are padding: what is computed while recording leaves no trace."""
        self._messages.buffer()[:2] = 0, 1
        self._messages.send(HEADER)


def decode_graphs(decoder: Decoder, pages: Tensor, limits: GraphLimits, recorder: Recorder) -> DecodeGraphs:
    """The graphs of a whole model. pages: [L, 2, N, P, K, D]; nothing in them changes."""
    caches = [LayerCache(layer[0], layer[1]) for layer in pages]

    def compute(inputs: DecodeInputs, decodes: PaddedDecodes) -> Tensor:
        hidden = decoder(inputs.token_ids, inputs.positions, inputs.slots, caches, decodes)
        return decoder.logits(hidden)

    return DecodeGraphs(compute, limits, recorder, pages.device)
