"""Set before anything imports torch, and inherited by the processes that tests start; and what many tests ask for."""

import contextlib
import os
import random
import signal
import socket
import sys
from pathlib import Path

import hypothesis
import pytest
from tokenizers import Tokenizer

from tests.fakes.text_model import byte_level_tokenizer, write_text_model

# The tests' models are tiny: on a busy machine a second thread only waits at barriers (measured: 63 s against 11 s).
os.environ.setdefault("OMP_NUM_THREADS", "1")

# Whoever ends the tests ends what they have started, as after Ctrl-C.
signal.signal(signal.SIGTERM, signal.default_int_handler)

# No example has to be done in time: the machine may be busy. What fails is printed as it can be repeated.
hypothesis.settings.register_profile("kvasir", deadline=None, print_blob=True)
hypothesis.settings.load_profile("kvasir")


@pytest.fixture(autouse=True)
def same_numbers_in_every_run() -> None:
    """Whoever draws without a generator of its own draws the same, whichever tests ran before."""
    if torch := sys.modules.get("torch"):
        torch.manual_seed(0)


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture
def free_port() -> int:
    """Of the loopback interface, and none that the system gives to those who ask for any: nobody takes it meanwhile."""
    while True:
        port = random.SystemRandom().randrange(20_000, 32_768)
        with contextlib.suppress(OSError), socket.create_server(("127.0.0.1", port)):
            return port


@pytest.fixture(scope="session")
def tokenizer() -> Tokenizer:
    return byte_level_tokenizer()


@pytest.fixture(scope="session")
def model_directory(tmp_path_factory: pytest.TempPathFactory, tokenizer: Tokenizer) -> Path:
    """Enough of a model for everything that a router reads."""
    return write_text_model(tmp_path_factory.mktemp("text-model"), tokenizer)
