"""A replica as a process: how it ends."""

import signal
from pathlib import Path

import pytest

from kvasir_protocol.config import EngineConfig, ModelConfig
from kvasir_protocol.ids import RequestId
from kvasir_protocol.messages import Submit, Tokens
from kvasir_protocol.request import GenerationRequest, SamplingParams
from tests.replica_process import replica_process

END_S = 60.0


@pytest.mark.parametrize("overlap", [False, True])
def test_replica_that_is_told_to_end_in_the_middle_of_its_streams_ends_orderly(
    checkpoint: Path, tmp_path: Path, overlap: bool
) -> None:
    model = ModelConfig(path=str(checkpoint), served_name="test", dtype="float32")
    engine = EngineConfig(device="cpu", num_threads=1, kv_cache_bytes=2**24, overlap=overlap)
    with replica_process(tmp_path, model, engine) as replica:
        assert replica.segments() != []
        for number in range(8):
            replica.client.send(Submit(request=endless(f"r{number}")))
        replica.client.expect(Tokens)
        replica.process.send_signal(signal.SIGTERM)
        assert replica.process.wait(END_S) == 0
        assert replica.segments() == []


def endless(name: str) -> GenerationRequest:
    """Goes on for as long as the context allows."""
    sampling = SamplingParams(max_tokens=400, seed=0, temperature=0, ignore_eos=True)
    return GenerationRequest(request_id=RequestId(name), prompt_token_ids=tuple(range(3, 60)), sampling=sampling)
