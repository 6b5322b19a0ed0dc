"""What Triton would compile for an engine's steps, without a GPU and without compiling: `launches(SCHEME) -> JSON`.

Each operation is asked of its kernel first, over a driver that runs nothing; Triton is told that what it is about to
compile is there already, and so does not launch it. Then the reference computes it. Printed are the number of kernels
that the warm-up met, and those that later traffic met for the first time.
"""

import json
import random
import sys
from collections.abc import Callable
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
import triton

from kvasir_kernels.compile_targets import GPUS, CompilingDriver
from kvasir_kernels.sampling_dispatch import mask_logits
from kvasir_protocol.config import EngineConfig, ModelConfig
from kvasir_protocol.ids import RequestId
from kvasir_protocol.request import GenerationRequest, SamplingParams
from kvasir_workers.load import LoadedModel, build_engine, load_model
from kvasir_workers.ready import record_graphs, warm_up
from kvasir_workers.runner.recorder import Rerun

OPERATIONS = {
    "rms_norm": "rms_norm", "add_rms_norm": "rms_norm", "add_rms_norm_float8": "rms_norm",
    "silu_mul": "silu_mul", "silu_mul_float8": "silu_mul", "rotate_and_write": "rotate_and_write",
    "paged_attention": "paged_attention", "float8_linear": "float8_linear", "unpack_decodes": "unpack_decodes",
    "sample_tokens": "sample_tokens", "penalise": "penalise", "mask_logits": "mask_logits",
}  # fmt: skip
"""The folder of each."""

CONFIG = EngineConfig(
    device="cpu", page_size=16, max_num_seqs=20, max_num_batched_tokens=200, kv_cache_bytes=2**24, overlap=True
)


def spy(operation: str) -> Callable[..., object]:
    """Launches the kernel, and leaves the work to the reference."""

    def launch(*arguments: object, **options: object) -> object:
        kernel = import_module(f"kvasir_kernels.{OPERATIONS[operation]}.kernel")
        getattr(kernel, operation)(*arguments, **options)
        return NotImplemented

    return launch


def __getattr__(name: str) -> Callable[..., object]:
    """Entry points name spies as attributes of this module."""
    operation = name.removeprefix("spy_")
    if operation not in OPERATIONS:
        raise AttributeError(name)
    return spy(operation)


def entry_points() -> str:
    """Of the group `kvasir.kernels`."""
    return "\n".join(f"{name} = tests.kernel_cases.launches:spy_{name}" for name in OPERATIONS)


def request(index: int) -> GenerationRequest:
    draw = random.Random(index)
    sampling = SamplingParams(
        temperature=draw.choice([0, 0.7, 1.0]),
        max_tokens=draw.randint(1, 30),
        seed=index,
        top_k=draw.choice([0, 0, 7]),
        top_p=draw.choice([1.0, 0.9]),
        repetition_penalty=draw.choice([1.0, 1.2]),
        logprobs=draw.choice([None, 3]),
        ignore_eos=True,
    )
    prompt = tuple(draw.choices(range(3, 256), k=draw.choice([1, 3, 17, 64, 150, 250])))
    return GenerationRequest(request_id=RequestId(f"r{index}"), prompt_token_ids=prompt, sampling=sampling)


def traffic(loaded: LoadedModel) -> None:
    for config in (CONFIG, replace(CONFIG, overlap=False, max_prefill_chunk_tokens=33)):
        engine = build_engine(loaded, config)
        for index in range(60):
            engine.add(request(index))
            engine.step()
        while engine.has_work:
            engine.step()
    width = loaded.decoder.spec.vocab_size
    for num_rows in (1, 2, 16, 20):
        words = torch.full((num_rows, -(-width // 32)), -1, dtype=torch.int32)
        mask_logits(torch.zeros(num_rows, width), tuple(range(num_rows)), words)


def main(directory: str, scheme: str) -> None:
    met: set[str] = set()

    def is_there_already(**facts: Any) -> bool:
        met.add(f"{facts['fn'].name} {facts['key']}")
        return True

    triton.runtime.driver.set_active(CompilingDriver(GPUS["sm_90"]))
    triton.knobs.runtime.jit_cache_hook = is_there_already
    model = ModelConfig(path=directory, served_name="m", dtype="bfloat16", quantization=scheme or None)  # type: ignore[arg-type]
    loaded = load_model(model, CONFIG)
    loaded = record_graphs(loaded, CONFIG, Rerun())
    warm_up(loaded, CONFIG)
    warmed = set(met)
    traffic(loaded)
    json.dump({"num_warmed": len(warmed), "late": sorted(met - warmed)}, sys.stdout)


if __name__ == "__main__":
    main(str(Path(sys.argv[1])), sys.argv[2])
