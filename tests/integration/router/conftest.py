from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer

from kvasir_protocol.view import ReplicaAddress
from kvasir_router.settings import RouterSettings, ServedModel
from tests.fakes.replica import FakeReplica
from tests.fakes.serving import MODEL_NAME, SECRET, MakeSettings

TEXT = "The quick brown fox 😀 jumps over 你好 the lazy dog."
EOS = 1

MakeReplica = Callable[[str], FakeReplica]


@pytest.fixture
def make_settings(model_directory: Path) -> Callable[..., MakeSettings]:
    """Settings over the replicas' addresses; keyword arguments replace fields."""

    def with_options(**options: Any) -> MakeSettings:
        def make(addresses: tuple[ReplicaAddress, ...]) -> RouterSettings:
            fields = {"replicas": addresses, **options}
            return RouterSettings(models=(ServedModel(model_directory, MODEL_NAME),), secret=SECRET, **fields)

        return make

    return with_options


@pytest.fixture
def make_replica(tokenizer: Tokenizer) -> MakeReplica:
    """A replica of the role that its name begins with, which answers everything with TEXT."""

    def make(name: str) -> FakeReplica:
        role = name.partition("-")[0]
        answer = tokenizer.encode(TEXT).ids
        return FakeReplica(name, role, SECRET, answer=answer, eos_token_id=EOS, num_cached_tokens=2)  # type: ignore[arg-type]

    return make


@pytest.fixture
def pools(make_replica: MakeReplica) -> tuple[FakeReplica, FakeReplica]:
    """One prefill and one decode replica."""
    return make_replica("prefill-0"), make_replica("decode-0")
