"""A replica as a process: how it ends."""

import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from kvasir_protocol.config import EngineConfig, HandoverConfig, ModelConfig, ReplicaConfig
from kvasir_protocol.ids import ReplicaId, RequestId
from kvasir_protocol.messages import Submit, Tokens
from kvasir_protocol.request import GenerationRequest, SamplingParams
from kvasir_protocol.sockets import load_or_create_secret
from kvasir_protocol.wire import to_plain
from tests.wire_client import WireClient


@pytest.mark.parametrize("overlap", [False, True])
def test_replica_that_is_told_to_end_in_the_middle_of_its_streams_ends_orderly(
    checkpoint: Path, tmp_path: Path, overlap: bool
) -> None:
    config = ReplicaConfig(
        replica_id=ReplicaId("mixed-0"),
        role="mixed",
        model=ModelConfig(path=str(checkpoint), served_name="test", dtype="float32"),
        engine=EngineConfig(device="cpu", num_threads=1, overlap=overlap),
        handover=HandoverConfig(transport="tcp"),
    )
    (tmp_path / "replica.yaml").write_text(yaml.safe_dump(to_plain(config)))
    secret = load_or_create_secret(tmp_path / "secret")
    command = [sys.executable, "-m", "kvasir_workers.replica", "--config", str(tmp_path / "replica.yaml")]
    with subprocess.Popen(
        [*command, "--secret-file", str(tmp_path / "secret")], stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        client = WireClient(process.stdout.readline().split()[-1], secret)
        sampling = SamplingParams(max_tokens=400, seed=0, temperature=0, ignore_eos=True)
        asked = GenerationRequest(request_id=RequestId("r"), prompt_token_ids=tuple(range(3, 60)), sampling=sampling)
        for number in range(8):
            client.send(Submit(request=replace(asked, request_id=RequestId(f"r{number}"))))
        client.expect(Tokens)
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0
        client.close()
