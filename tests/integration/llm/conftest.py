"""Small random checkpoints with a tokenizer, for the LLM class and for transformers alike."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer
from transformers import AutoModelForCausalLM, PreTrainedModel

from kvasir import LLM
from tests.checkpoints import make_checkpoint

PAGE_SIZE = 4
EOS = 2

MakeLLM = Callable[..., LLM]


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory, tokenizer: Tokenizer) -> Path:
    path = make_checkpoint(
        tmp_path_factory.mktemp("qwen3"), "Qwen3ForCausalLM", vocab_size=tokenizer.get_vocab_size(), eos_token_id=EOS
    )
    tokenizer.save(str(path / "tokenizer.json"))
    return path


@pytest.fixture(scope="session")
def theirs(checkpoint: Path) -> PreTrainedModel:
    model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(
        checkpoint, dtype=torch.float32, attn_implementation="eager"
    )
    return model


@pytest.fixture(scope="session")
def make_llm(checkpoint: Path) -> MakeLLM:
    def make(**options: object) -> LLM:
        sizes = {"block_size": PAGE_SIZE, "kv_cache_memory_bytes": 2**22, "max_num_seqs": 64}
        return LLM(checkpoint, dtype="float32", device="cpu", **(sizes | options))  # type: ignore[arg-type]

    return make


@pytest.fixture(scope="module")
def llm(make_llm: MakeLLM) -> Iterator[LLM]:
    with make_llm() as opened:
        yield opened
        assert opened.get_stats().num_used_pages == 0
        assert opened.get_stats().num_running + opened.get_stats().num_waiting == 0


@pytest.fixture(scope="session")
def likely_end_checkpoint(
    tmp_path_factory: pytest.TempPathFactory, checkpoint: Path, theirs: PreTrainedModel, tokenizer: Tokenizer
) -> Path:
    """The same model, except that its end token comes often: its row of the head is a few others' sum."""
    path = tmp_path_factory.mktemp("likely-end")
    model = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32)
    with torch.no_grad():
        model.lm_head.weight[EOS] = model.lm_head.weight[5:9].sum(dim=0)
    model.save_pretrained(path)
    tokenizer.save(str(path / "tokenizer.json"))
    return path


@pytest.fixture(scope="session")
def theirs_likely_end(likely_end_checkpoint: Path) -> PreTrainedModel:
    model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(
        likely_end_checkpoint, dtype=torch.float32, attn_implementation="eager"
    )
    return model


@pytest.fixture(scope="module")
def llm_likely_end(likely_end_checkpoint: Path) -> Iterator[LLM]:
    with LLM(
        likely_end_checkpoint, dtype="float32", device="cpu", block_size=PAGE_SIZE, kv_cache_memory_bytes=2**22
    ) as llm:
        yield llm
