"""What may be loaded without what: the offline LLM has no web server, the router no torch."""

import subprocess
import sys

import pytest


@pytest.mark.parametrize(
    ("module", "forbidden"),
    [
        ("kvasir_router", {"tokenizers", "fastapi", "zmq"}),
        ("kvasir_router.tokenise", {"fastapi", "starlette", "uvicorn", "zmq", "prometheus_client", "torch"}),
        ("kvasir_router.pieces", {"fastapi", "starlette", "uvicorn", "zmq", "prometheus_client", "torch"}),
        ("kvasir.cli.setup", {"torch", "transformers"}),
        ("kvasir_router.__main__", {"torch", "triton", "transformers", "ray", "kvasir_workers", "kvasir_kernels"}),
    ],
)
def test_import_brings_nothing_heavy_along(module: str, forbidden: set[str]) -> None:
    program = f"import sys, {module}; print(*sorted(set(sys.modules) & {forbidden!r}))"
    found = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert found.stdout.split() == []
