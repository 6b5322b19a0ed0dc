"""What travels together arrives as it was, and the next message does not touch the last."""

import numpy as np
import pytest
import torch

from kvasir_workers.runner.device_copies import Homecoming, StagedMessages, upload

CPU = torch.device("cpu")


def test_arrays_arrive_with_their_shapes_and_types() -> None:
    arrays = [np.arange(5), np.array([[0.5], [1.5]], dtype=np.float32), np.empty(0, dtype=np.int32)]
    for array, tensor in zip(arrays, upload(arrays, CPU), strict=True):
        assert torch.equal(tensor, torch.from_numpy(array))


def test_message_is_there_as_far_as_it_was_sent() -> None:
    messages = StagedMessages(4, CPU)
    messages.buffer()[:] = 1, 2, 3, 4
    messages.send(2)
    assert messages.there.tolist() == [1, 2, 0, 0]


def test_two_messages_never_share_a_buffer() -> None:
    """The copy of the first may still be on its way when the second is written."""
    messages = StagedMessages(2, CPU)
    first = messages.buffer()
    messages.send(2)
    second = messages.buffer()
    messages.send(2)
    assert not np.shares_memory(first, second)
    assert np.shares_memory(first, messages.buffer())


@pytest.mark.parametrize("tensors", [[], [torch.arange(3), torch.ones(2)]])
def test_results_come_home_as_they_are(tensors: list[torch.Tensor]) -> None:
    home = Homecoming(tensors, CPU).wait()
    assert [tensor.tolist() for tensor in home] == [tensor.tolist() for tensor in tensors]
