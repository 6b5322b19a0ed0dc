"""Engines with real models: small random checkpoints of each family, and the demo model."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from kvasir.demo import demo_model_path
from kvasir_protocol.config import EngineConfig, ModelConfig
from kvasir_protocol.events import TokenLogprobs, TokenOutput
from kvasir_protocol.request import GenerationRequest
from kvasir_workers.engine import Engine
from kvasir_workers.kv.offload.open_tiers import OpenTiers
from kvasir_workers.load import build_engine, load_model
from kvasir_workers.memory import page_bytes
from kvasir_workers.model.loader import load_spec
from tests.checkpoints import make_checkpoint

PAGE_SIZE = 4
DEMO_MODEL = demo_model_path()

FAMILIES: dict[str, dict[str, object]] = {
    "LlamaForCausalLM": {},
    "Qwen2ForCausalLM": {"tie_word_embeddings": True},
    "Qwen3ForCausalLM": {},
    "MistralForCausalLM": {"sliding_window": 7},
}


class Model:
    """A checkpoint, from which engines of any size are made. Their pages are NaN until they are written."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def engine(
        self,
        *,
        num_pages: int = 512,
        budget: int = 512,
        max_num_seqs: int = 32,
        caches: bool = True,
        page_size: int = PAGE_SIZE,
        overlap: bool = True,
    ) -> Engine:
        config = EngineConfig(
            device="cpu",
            page_size=page_size,
            max_num_seqs=max_num_seqs,
            max_num_batched_tokens=budget,
            enable_prefix_caching=caches,
            overlap=overlap,
            kv_cache_bytes=num_pages * page_bytes(load_spec(self.path), page_size, torch.float32),
        )
        loaded = load_model(ModelConfig(path=str(self.path), served_name="m", dtype="float32"), config)
        loaded.pages.fill_(torch.nan)
        assert loaded.pages.shape[2] == num_pages
        return build_engine(loaded, config)


def never_compute(opened: OpenTiers) -> None:
    """Whatever is measured, restoring looks cheaper: how busy the machine is must not decide."""
    opened.tiers.prices.token.add(1e300, 1)


class Answer:
    """All that an engine said to one request."""

    def __init__(self, outputs: list[TokenOutput]) -> None:
        self.token_ids = [token for output in outputs for token in output.token_ids]
        self.logprobs: list[TokenLogprobs] = [item for output in outputs for item in output.logprobs]
        self.num_cached_tokens = outputs[0].num_cached_tokens
        self.prompt_logprobs = [item for output in outputs for item in output.prompt_logprobs]
        self.embedding = outputs[-1].embedding
        self.finish_reason = outputs[-1].finish_reason


def run(engine: Engine, requests: list[GenerationRequest], *, arrivals_per_step: int = 1000) -> list[Answer]:
    """The answers to requests that arrive a few at a step, with the books checked after each."""
    outputs: dict[str, list[TokenOutput]] = {request.request_id: [] for request in requests}
    waiting = list(requests)
    while waiting or engine.has_work:
        for request in waiting[:arrivals_per_step]:
            engine.add(request)
        del waiting[:arrivals_per_step]
        for output in engine.step():
            outputs[output.request_id].append(output)
        engine.audit()
    assert engine.num_used_pages == 0
    return [Answer(outputs[request.request_id]) for request in requests]


MakeModel = Callable[[str], Model]


@pytest.fixture(scope="session")
def make_model(tmp_path_factory: pytest.TempPathFactory) -> MakeModel:
    """make_model(family) -> its checkpoint, written once; "demo" is the model that ships with Kvasir."""
    made: dict[str, Model] = {"demo": Model(DEMO_MODEL)}

    def make(family: str) -> Model:
        if family not in made:
            path = make_checkpoint(tmp_path_factory.mktemp(family), family, **FAMILIES[family])
            made[family] = Model(path)
        return made[family]

    return make
