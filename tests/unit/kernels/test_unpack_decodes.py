"""What a packed message makes of the inputs of a step of decodes."""

import torch

from kvasir_kernels.sampling_dispatch import DecodeInputs, unpack_decodes
from tests.kernel_cases.decodes import pack

CPU = torch.device("cpu")


def unpacked(num_rows: int) -> DecodeInputs:
    """Two real rows of up to four; the second one's token is what row 1 of the step before said."""
    inputs = DecodeInputs.empty(4, 3, CPU)
    inputs.token_ids.fill_(77)
    inputs.slots.fill_(77)
    packed = pack([5, 0], [-1, 1], [0, 6], [[9, 8], [3, 2]], capacity=4, width=3)
    unpack_decodes(packed, torch.tensor([50, 60]), num_rows, 4, inputs)
    return inputs


def test_token_is_known_or_was_just_said() -> None:
    assert unpacked(2).token_ids[:2].tolist() == [5, 60]


def test_slot_and_context_follow_from_position_and_pages() -> None:
    inputs = unpacked(2)
    assert inputs.slots[:2].tolist() == [9 * 4, 2 * 4 + 2]
    assert inputs.context_lens[:2].tolist() == [1, 7]
    assert inputs.page_tables[:2, :2].tolist() == [[9, 8], [3, 2]]


def test_padding_is_written_nowhere_and_rows_beyond_are_not_touched() -> None:
    inputs = unpacked(3)
    assert (inputs.token_ids.tolist(), inputs.slots.tolist()) == ([5, 60, 0, 77], [36, 10, -1, 77])
    assert inputs.context_lens.tolist() == [1, 7, 0, 0]
