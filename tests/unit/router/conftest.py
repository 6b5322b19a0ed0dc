from pathlib import Path

import pytest

from kvasir_router.tokenise import TextCodec
from tests.fakes.text_model import byte_fallback_tokenizer, write_text_model


@pytest.fixture(scope="session")
def codec(model_directory: Path) -> TextCodec:
    return TextCodec.from_directory(model_directory)


@pytest.fixture(scope="session")
def byte_fallback_codec(tmp_path_factory: pytest.TempPathFactory) -> TextCodec:
    return TextCodec.from_directory(write_text_model(tmp_path_factory.mktemp("fallback"), byte_fallback_tokenizer()))
