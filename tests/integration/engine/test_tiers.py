"""Real models whose pages go to host memory and to a real disk: the tokens stay the same."""

import os
import random
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from kvasir_protocol.config import EngineConfig, ModelConfig
from kvasir_protocol.ids import RequestId
from kvasir_protocol.request import GenerationRequest, SamplingParams
from kvasir_workers.engine import Engine
from kvasir_workers.kv.offload.open_tiers import OpenTiers, open_tiers
from kvasir_workers.kv.offload.page_file import RECORD_OVERHEAD_BYTES
from kvasir_workers.load import build_engine, load_model
from kvasir_workers.memory import page_bytes
from kvasir_workers.model.loader import load_spec
from tests.integration.engine.conftest import PAGE_SIZE, MakeModel, Model, never_compute, run

NUM_PAGES = 26
NUM_TEXTS = 8
MODELS = ["LlamaForCausalLM", "demo"]


def texts() -> list[tuple[int, ...]]:
    draw = random.Random(1)
    return [tuple(draw.choices(range(3, 250), k=70)) for _ in range(NUM_TEXTS)]


def ask(text: tuple[int, ...], name: str) -> GenerationRequest:
    sampling = SamplingParams(temperature=0, max_tokens=6, seed=0, ignore_eos=True)
    return GenerationRequest(request_id=RequestId(name), prompt_token_ids=text, sampling=sampling)


class Layered:
    """An engine whose device holds one prompt, its host memory two, and its disk all."""

    def __init__(self, model: Model, path: Path, *, host_pages: int, disk_pages: int, overlap: bool) -> None:
        size = page_bytes(load_spec(model.path), PAGE_SIZE, torch.float32)
        config = EngineConfig(
            device="cpu",
            page_size=PAGE_SIZE,
            kv_cache_bytes=NUM_PAGES * size,
            max_num_batched_tokens=256,
            host_cache_bytes=host_pages * size,
            disk_cache_bytes=disk_pages * (size + RECORD_OVERHEAD_BYTES),
            disk_cache_path=str(path) if disk_pages else None,
            overlap=overlap,
        )
        loaded = load_model(ModelConfig(path=str(model.path), served_name="m", dtype="float32"), config)
        loaded.pages.fill_(torch.nan)
        opened = open_tiers(loaded.pages, config)
        assert opened is not None
        never_compute(opened)
        self.opened: OpenTiers = opened
        self.engine: Engine = build_engine(loaded, config, opened=opened)

    def answer_all(self, round_name: str) -> list[list[int]]:
        """One after the other, so that each takes the place of the one before."""
        requests = [ask(text, f"{round_name}-{number}") for number, text in enumerate(texts())]
        return [run(self.engine, [request])[0].token_ids for request in requests]


@pytest.fixture(scope="module", params=MODELS)
def model(request: pytest.FixtureRequest, make_model: MakeModel) -> Model:
    return make_model(request.param)


@pytest.fixture(scope="module")
def expected(model: Model) -> list[list[int]]:
    engine = model.engine(caches=False)
    return [run(engine, [ask(text, f"plain-{number}")])[0].token_ids for number, text in enumerate(texts())]


@pytest.fixture(params=[False, True], ids=["plain loop", "overlap"])
def layered(request: pytest.FixtureRequest, model: Model, tmp_path: Path) -> Iterator[Layered]:
    layered = Layered(model, tmp_path, host_pages=60, disk_pages=400, overlap=request.param)
    yield layered
    layered.opened.tiers.close()


def test_tokens_are_the_same_with_pages_from_host_memory(
    model: Model, expected: list[list[int]], tmp_path: Path
) -> None:
    layered = Layered(model, tmp_path, host_pages=400, disk_pages=0, overlap=False)
    for number in range(2):
        assert layered.answer_all(f"round {number}") == expected
    counters = layered.engine.counters()
    num_pages = (len(texts()[0]) - 1) // PAGE_SIZE
    assert counters.host_restored_pages >= (NUM_TEXTS - 1) * num_pages
    assert counters.cached_prompt_tokens >= (NUM_TEXTS - 1) * num_pages * PAGE_SIZE


def test_tokens_are_the_same_with_pages_from_disk(layered: Layered, expected: list[list[int]]) -> None:
    for number in range(4):
        assert layered.answer_all(f"round {number}") == expected
    counters = layered.engine.counters()
    assert min(counters.disk_saved_pages, counters.disk_restored_pages, counters.host_restored_pages) > 0
    assert counters.disk_corrupt_pages == 0


def test_tokens_are_the_same_from_a_disk_that_spoils_what_it_holds(
    layered: Layered, expected: list[list[int]], tmp_path: Path
) -> None:
    assert layered.answer_all("first") == expected
    for number in range(4):
        spoil(tmp_path)
        assert layered.answer_all(f"round {number}") == expected
    assert layered.engine.counters().disk_corrupt_pages > 0


def spoil(folder: Path) -> None:
    """Change a byte in each 1000 of the nameless file in the folder."""
    links = [Path("/proc/self/fd") / name for name in os.listdir("/proc/self/fd")]
    (link,) = (link for link in links if link.exists() and os.readlink(link).startswith(str(folder)))
    with open(link, "r+b") as file:
        for place in range(0, os.fstat(file.fileno()).st_size, 1000):
            file.seek(place)
            file.write(b"\xa5")
