"""Gangs of real processes on this host: they answer as one, are lost together, and leave nothing behind."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import psutil
import pytest

from kvasir import LLM, SamplingParams
from kvasir_protocol.config import EngineConfig, ModelConfig
from kvasir_protocol.errors import CheckpointError, ConfigError, RankLost
from kvasir_protocol.ids import RequestId
from kvasir_protocol.request import GenerationRequest
from kvasir_protocol.structured import StructuredOutput
from kvasir_workers.engine import Engine
from kvasir_workers.held_files import create_held
from kvasir_workers.load import build_engine, load_leader
from kvasir_workers.parallel.local_gang import LocalGang, load_gang, remove_abandoned_folders
from kvasir_workers.parallel.mesh import GangShape
from tests.integration.engine.conftest import DEMO_MODEL
from tests.mapped_segments import mapped_bytes

PATIENCE_S = 20.0

QUESTIONS = ["Who was Kvasir?", "What is a KV cache?", "How do I start a cluster?"]
GREEDY = SamplingParams(temperature=0, max_tokens=16)
FORM = SamplingParams(
    temperature=0, max_tokens=30, structured_outputs=StructuredOutput(kind="regex", text="[0-9]{3}-[a-z]{4}")
)
SMALL = {"kv_cache_memory_bytes": 4 * 2**20, "max_num_seqs": 8, "max_num_batched_tokens": 64}


def texts(llm: LLM) -> list[str]:
    params = [GREEDY, GREEDY, FORM]
    return [answer.outputs[0].text for answer in llm.generate(QUESTIONS, params, use_tqdm=False)]


@pytest.fixture(scope="module")
def expected() -> list[str]:
    with LLM(**SMALL) as llm:  # type: ignore[arg-type]
        return texts(llm)


@pytest.mark.parametrize(("tp", "pp"), [(2, 1), (1, 2), (2, 2)])
def test_llm_of_several_processes_says_the_same_and_ends_them(tp: int, pp: int, expected: list[str]) -> None:
    before = set(psutil.Process().children(recursive=True))
    with LLM(tensor_parallel_size=tp, pipeline_parallel_size=pp, **SMALL) as llm:  # type: ignore[arg-type]
        started = set(psutil.Process().children(recursive=True)) - before
        assert len(started) == tp * pp - 1
        assert texts(llm) == expected
    assert not any(process.is_running() for process in started)
    assert set(psutil.Process().children(recursive=True)) <= before, "also those that tried the grammar"


def test_what_can_not_be_had_is_refused_before_a_process_is_started() -> None:
    before = set(psutil.Process().children(recursive=True))
    with pytest.raises(ConfigError, match="tensor_parallel_size 3 does not divide the model's 8 heads"):
        LLM(tensor_parallel_size=3)
    with pytest.raises(ConfigError, match=r"host_cache_bytes is not supported with several ranks \(tp=2 pp=1\)"):
        LLM(tensor_parallel_size=2, host_cache_memory_bytes=2**20)
    assert set(psutil.Process().children(recursive=True)) == before


def test_llm_that_fails_after_its_gang_was_loaded_ends_the_gang(tmp_path: Path) -> None:
    for file in DEMO_MODEL.iterdir():
        if file.name != "tokenizer.json":
            (tmp_path / file.name).symlink_to(file)
    before = set(psutil.Process().children(recursive=True))
    with pytest.raises(CheckpointError, match=r"has no tokenizer\.json"):
        LLM(tmp_path, tensor_parallel_size=2, **SMALL)  # type: ignore[arg-type]
    assert set(psutil.Process().children(recursive=True)) == before


OPEN_A_GANG_AND_BE_KILLED = """
import os, signal
from kvasir_protocol.config import EngineConfig, ModelConfig
from kvasir_workers.parallel.local_gang import LocalGang
from kvasir_workers.parallel.mesh import GangShape
LocalGang(ModelConfig(path="/nowhere", served_name="m"), EngineConfig(), GangShape(tensor_parallel_size=2))
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_folder_of_a_leader_that_was_killed_is_taken_away_and_that_of_a_living_one_is_not(tmp_path: Path) -> None:
    environment = {**os.environ, "TMPDIR": str(tmp_path)}
    subprocess.run([sys.executable, "-c", OPEN_A_GANG_AND_BE_KILLED], env=environment, stderr=subprocess.DEVNULL)
    (left,) = tmp_path.iterdir()
    (tmp_path / "kvasir-gang-alive").mkdir()
    held = create_held(tmp_path / "kvasir-gang-alive" / "leader")
    remove_abandoned_folders(tmp_path)
    os.close(held)
    assert [folder.name for folder in tmp_path.iterdir()] == ["kvasir-gang-alive"], left


def step(engine: Engine, number: int) -> None:
    for _ in range(number):
        engine.step()


@pytest.fixture(params=[(2, 1), (1, 2)], ids=["tp=2", "pp=2"])
def gang(request: pytest.FixtureRequest) -> Iterator[tuple[LocalGang, Engine]]:
    """Its collectives have a deadline of two seconds."""
    tp, pp = request.param
    shape = GangShape(tensor_parallel_size=tp, pipeline_parallel_size=pp)
    config = EngineConfig(device="cpu", kv_cache_bytes=8 * 2**20, num_threads=1, rank_deadline_s=2.0)
    opened, loaded = load_gang(ModelConfig(path=str(DEMO_MODEL), served_name="m"), config, shape)
    assert opened is not None
    engine = build_engine(loaded, config)
    prompt = GenerationRequest(
        request_id=RequestId("r"), prompt_token_ids=(5, 6, 7), sampling=SamplingParams(seed=0, max_tokens=900)
    )
    engine.add(prompt)
    for _ in range(3):
        engine.step()
    yield opened, engine
    for process_id in opened.process_ids.values():
        if psutil.pid_exists(process_id):
            os.kill(process_id, signal.SIGKILL)
    opened.close()


def test_killed_rank_fails_the_step_by_name(gang: tuple[LocalGang, Engine]) -> None:
    opened, engine = gang
    os.kill(opened.process_ids[1], signal.SIGKILL)
    with pytest.raises(RankLost) as caught:
        step(engine, 5)
    assert caught.value.ranks == (1,)


def test_rank_that_hangs_fails_the_step_by_name(gang: tuple[LocalGang, Engine]) -> None:
    opened, engine = gang
    os.kill(opened.process_ids[1], signal.SIGSTOP)
    with pytest.raises(RankLost) as caught:
        step(engine, 5)
    assert caught.value.ranks == (1,)
    assert "did not come" in str(caught.value)


def test_follower_at_rest_maps_the_memory_of_all_its_pages() -> None:
    model, shape = ModelConfig(path=str(DEMO_MODEL), served_name="m"), GangShape(tensor_parallel_size=2)
    config = EngineConfig(device="cpu", kv_cache_bytes=8 * 2**20, num_threads=1)
    with ExitStack() as opened:
        gang = LocalGang(model, config, shape, f"kvasir-test-gang-{os.getpid()}")
        opened.callback(gang.close)
        parts = load_leader(model, config, gang.seat).parts
        for part in parts:
            opened.callback(part.close)
        segment = parts[1].segment
        assert segment is not None
        give_up_at = time.monotonic() + PATIENCE_S
        while mapped_bytes(segment.name, gang.process_ids[1]) < segment.tensor.nbytes:
            assert time.monotonic() < give_up_at, "pages that nobody maps"


def test_follower_that_ends_while_all_load_is_named() -> None:
    """It finds no checkpoint, since what it is told to load is not what its leader has."""
    shape = GangShape(tensor_parallel_size=2)
    config = EngineConfig(device="cpu", kv_cache_bytes=4 * 2**20, num_threads=1)
    opened = LocalGang(ModelConfig(path="/nowhere", served_name="m"), config, shape)
    try:
        with pytest.raises(RankLost, match="the process of rank 1 ended with code 1; rank 1"):
            load_leader(ModelConfig(path=str(DEMO_MODEL), served_name="m"), config, opened.seat)
    finally:
        opened.close()
