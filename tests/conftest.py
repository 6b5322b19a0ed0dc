"""Set before anything imports torch, and inherited by the processes that tests start; and what many tests ask for."""

import os
from pathlib import Path

import pytest
from tokenizers import Tokenizer

from tests.fakes.text_model import byte_level_tokenizer, write_text_model

# The tests' models are tiny: on a busy machine a second thread only waits at barriers (measured: 63 s against 11 s).
os.environ.setdefault("OMP_NUM_THREADS", "1")


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(scope="session")
def tokenizer() -> Tokenizer:
    return byte_level_tokenizer()


@pytest.fixture(scope="session")
def model_directory(tmp_path_factory: pytest.TempPathFactory, tokenizer: Tokenizer) -> Path:
    """Enough of a model for everything that a router reads."""
    return write_text_model(tmp_path_factory.mktemp("text-model"), tokenizer)
