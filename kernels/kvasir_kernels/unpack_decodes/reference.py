"""What a step of decodes reads, from one packed message of the host, in plain torch.

    int32:  [ n, w, 0, 0 | token ids: S | said rows: S | positions: S | page tables: n x w ]

n rows are real, w columns of their page tables are sent. A said row is -1 where the token id says what the token is;
else the token is what the step before said there.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

HEADER = 4
"""So many numbers come first: 16 bytes."""


@dataclass(frozen=True, slots=True)
class DecodeInputs:
    """One token for each of up to S rows, always at the same place on the device.

    token_ids, positions, slots: [S] int64. context_lens: [S] int32. page_tables: [S, M] int64, of which a row's own
    pages are valid. A row of padding is token 0 at position 0, has slot -1, and sees nothing.
    """

    token_ids: Tensor
    positions: Tensor
    slots: Tensor
    context_lens: Tensor
    page_tables: Tensor

    @classmethod
    def empty(cls, num_rows: int, num_pages: int, device: torch.device) -> "DecodeInputs":
        """For S rows of up to M pages."""

        def numbers(*shape: int, dtype: torch.dtype = torch.int64) -> Tensor:
            return torch.zeros(shape, dtype=dtype, device=device)

        return cls(
            token_ids=numbers(num_rows),
            positions=numbers(num_rows),
            slots=numbers(num_rows),
            context_lens=numbers(num_rows, dtype=torch.int32),
            page_tables=numbers(num_rows, num_pages),
        )

    def first(self, num_rows: int) -> "DecodeInputs":
        """Those of the first rows, in the same memory."""
        columns = (self.token_ids, self.positions, self.slots, self.context_lens, self.page_tables)
        return DecodeInputs(*(column[:num_rows] for column in columns))


def packed_size(num_rows: int, num_pages: int) -> int:
    """The longest message for S rows of up to M pages, in numbers."""
    return HEADER + num_rows * (3 + num_pages)


def unpack_decodes(packed: Tensor, said: Tensor, num_rows: int, page_size: int, inputs: DecodeInputs) -> None:
    """Fill the first num_rows rows of inputs: those that are real, and padding.

    packed: int32, as drawn above. said: int64, what the step before said.
    """
    capacity = len(inputs.token_ids)
    num_real, width = packed[:2].tolist()
    columns = packed[HEADER:].long()
    token_ids, said_rows, positions = (columns[index * capacity :][:num_real] for index in range(3))
    tables = columns[3 * capacity :][: num_real * width].view(num_real, width)
    pages = tables.gather(1, positions[:, None] // page_size)[:, 0]
    for column, padding in (
        (inputs.token_ids, 0), (inputs.positions, 0), (inputs.slots, -1), (inputs.context_lens, 0),
    ):  # fmt: skip
        column[num_real:num_rows] = padding
    inputs.token_ids[:num_real] = torch.where(said_rows >= 0, said[said_rows.clamp(min=0)], token_ids)
    inputs.positions[:num_real] = positions
    inputs.slots[:num_real] = pages * page_size + positions % page_size
    inputs.context_lens[:num_real] = positions + 1
    inputs.page_tables[:num_real, :width] = tables
