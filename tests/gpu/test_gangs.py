"""Gangs of GPUs: their sums, and the graphs of their decode steps."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from kvasir_protocol.config import EngineConfig, ModelConfig
from kvasir_protocol.ids import RequestId
from kvasir_protocol.request import GenerationRequest, SamplingParams
from kvasir_workers.engine import Engine
from kvasir_workers.load import build_engine
from kvasir_workers.parallel.local_gang import load_gang
from kvasir_workers.parallel.mesh import GangShape
from kvasir_workers.ready import make_ready
from tests.checkpoints import make_checkpoint

pytestmark = pytest.mark.gpu

ROOT = Path(__file__).parents[2]

needs_two = pytest.mark.skipif(
    torch.cuda.device_count() < 2, reason="a gang of two needs two GPUs: NCCL takes one rank a device"
)

ON_ONE_DEVICE = """
import sys
import torch
from kvasir_workers.parallel.cuda_peers import CudaPeers
from kvasir_workers.parallel.peer_board import BoardSeat
from kvasir_workers.parallel.torch_groups import file_store

index, num_ranks = int(sys.argv[2]), 2
seat = BoardSeat(name="peers", index=index, num_ranks=num_ranks, store=file_store(sys.argv[1], num_ranks))
device = CudaPeers(num_ranks, torch.device("cuda", 0), 60.0, by_nccl=None)
handles = seat.hear("handles", seat.together("memory", device.share))
board = seat.together("access", lambda: device.open(index, handles))
seat.together("sums", lambda: device.check(board))
"""


def test_two_processes_on_one_device_read_each_others_memory_and_add_up(tmp_path: Path) -> None:
    """They take turns there: slow, but the way to the memory and the waiting are those of two devices."""
    ranks = [
        subprocess.Popen(
            [sys.executable, "-c", ON_ONE_DEVICE, str(tmp_path / "store"), str(index)],
            cwd=ROOT, stderr=subprocess.PIPE, text=True,
        )
        for index in range(2)
    ]  # fmt: skip
    said = [rank.communicate(timeout=150)[1] for rank in ranks]
    assert [rank.returncode for rank in ranks] == [0, 0], said


def request(index: int) -> GenerationRequest:
    sampling = SamplingParams(temperature=0 if index % 2 else 0.8, max_tokens=12, seed=index, ignore_eos=True)
    prompt = tuple((7 * place + 13 * index) % 200 + 5 for place in range(3 + 5 * index))
    return GenerationRequest(request_id=RequestId(f"r{index}"), prompt_token_ids=prompt, sampling=sampling)


def answers(engine: Engine) -> dict[str, list[int]]:
    said: dict[str, list[int]] = {}
    for index in range(8):
        engine.add(request(index))
    while engine.has_work:
        for output in engine.step():
            said.setdefault(output.request_id, []).extend(output.token_ids)
    engine.audit()
    return said


@needs_two
@pytest.mark.parametrize("enforce_eager", [False, True])
def test_gang_of_two_says_what_one_rank_says(tmp_path: Path, enforce_eager: bool) -> None:
    checkpoint = make_checkpoint(tmp_path / "model", "Qwen3ForCausalLM", head_dim=64)
    model = ModelConfig(path=str(checkpoint), served_name="m", dtype="float32")
    config = EngineConfig(
        device="cuda", max_num_seqs=8, max_num_batched_tokens=256, kv_cache_bytes=2**26, enforce_eager=enforce_eager
    )
    _, alone = load_gang(model, config, GangShape())
    expected = answers(build_engine(make_ready(alone, config), config))
    gang, loaded = load_gang(model, config, GangShape(tensor_parallel_size=2))
    assert gang is not None and loaded.lead is not None
    try:
        loaded = make_ready(loaded, config)
        assert (loaded.graphs is None) == enforce_eager
        assert answers(build_engine(loaded, config)) == expected
    finally:
        loaded.lead.close()
        gang.close()
