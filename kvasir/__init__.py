"""Kvasir: serve large language models on one machine or on many.

from kvasir import LLM, SamplingParams
for output in LLM().generate(["What is a KV cache?"], SamplingParams(max_tokens=64)):
    print(output.outputs[0].text)
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from kvasir.beam_search import BeamSearchParams
    from kvasir.llm import LLM
    from kvasir.outputs import (
        BeamSearchOutput,
        CompletionOutput,
        EmbeddingRequestOutput,
        Increment,
        Logprob,
        RequestMetrics,
        RequestOutput,
    )
    from kvasir_protocol.request import SamplingParams
    from kvasir_protocol.structured import StructuredOutput

__all__ = [
    "LLM",
    "BeamSearchOutput",
    "BeamSearchParams",
    "CompletionOutput",
    "EmbeddingRequestOutput",
    "Increment",
    "Logprob",
    "RequestMetrics",
    "RequestOutput",
    "SamplingParams",
    "StructuredOutput",
]
__version__ = "0.1.0"

_HOME_OF = {
    "LLM": "kvasir.llm",
    "BeamSearchOutput": "kvasir.outputs",
    "BeamSearchParams": "kvasir.beam_search",
    "CompletionOutput": "kvasir.outputs",
    "EmbeddingRequestOutput": "kvasir.outputs",
    "Increment": "kvasir.outputs",
    "Logprob": "kvasir.outputs",
    "RequestMetrics": "kvasir.outputs",
    "RequestOutput": "kvasir.outputs",
    "SamplingParams": "kvasir_protocol.request",
    "StructuredOutput": "kvasir_protocol.structured",
}


def __getattr__(name: str) -> object:
    """Import on first use, so that `kvasir --help` does not wait for torch."""
    if name not in _HOME_OF:
        raise AttributeError(f"module 'kvasir' has no attribute {name!r}")
    return getattr(import_module(_HOME_OF[name]), name)
