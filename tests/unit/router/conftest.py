from pathlib import Path

import pytest
from tokenizers import Tokenizer

from kvasir_router.tokenise import TextCodec
from tests.fakes.text_model import byte_fallback_tokenizer, byte_level_tokenizer, write_text_model


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(scope="session")
def tokenizer() -> Tokenizer:
    return byte_level_tokenizer()


@pytest.fixture(scope="session")
def model_directory(tmp_path_factory: pytest.TempPathFactory, tokenizer: Tokenizer) -> Path:
    return write_text_model(tmp_path_factory.mktemp("text-model"), tokenizer)


@pytest.fixture(scope="session")
def codec(model_directory: Path) -> TextCodec:
    return TextCodec.from_directory(model_directory)


@pytest.fixture(scope="session")
def byte_fallback_codec(tmp_path_factory: pytest.TempPathFactory) -> TextCodec:
    return TextCodec.from_directory(write_text_model(tmp_path_factory.mktemp("fallback"), byte_fallback_tokenizer()))
