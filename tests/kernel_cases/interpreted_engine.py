"""An engine whose every operation is a Triton kernel, in Triton's interpreter: `interpreted_engine DIRECTORY -> JSON`.

Graphs are computed again, steps overlap. Printed are its answers and those of an engine of references, which computes
each step anew.
"""

import json
import random
import sys
from collections.abc import Callable
from dataclasses import replace
from importlib import import_module

from kvasir_protocol.config import EngineConfig, ModelConfig
from kvasir_protocol.ids import RequestId
from kvasir_protocol.request import GenerationRequest, SamplingParams
from kvasir_workers.engine import Engine
from kvasir_workers.kv.manager import KvManager, Reuse
from kvasir_workers.load import LoadedModel, build_engine, load_model
from kvasir_workers.ready import record_graphs
from kvasir_workers.runner.recorder import Rerun
from kvasir_workers.runner.stream_runner import StreamRunner
from tests.kernel_cases.launches import OPERATIONS

CONFIG = EngineConfig(
    device="cpu", page_size=4, max_num_seqs=3, max_num_batched_tokens=16, kv_cache_bytes=2**20, overlap=True
)


class _Choice:
    interprets = False


def __getattr__(name: str) -> Callable[..., object]:
    """Entry points name kernels as attributes of this module."""
    operation = name.removeprefix("run_")
    if operation not in OPERATIONS:
        raise AttributeError(name)

    def run(*arguments: object, **options: object) -> object:
        if not _Choice.interprets:
            return NotImplemented
        kernel = import_module(f"kvasir_kernels.{OPERATIONS[operation]}.kernel")
        result: object = getattr(kernel, operation)(*arguments, **options)
        return result

    return run


def entry_points() -> str:
    """Of the group `kvasir.kernels`."""
    return "\n".join(f"{name} = tests.kernel_cases.interpreted_engine:run_{name}" for name in OPERATIONS)


def request(index: int) -> GenerationRequest:
    """Greedy, drawn, penalised, of few tokens or with a word that must not be said."""
    ways: list[dict[str, object]] = [
        {"temperature": 0, "repetition_penalty": 1.5},
        {"temperature": 1.0},
        {"top_k": 5, "top_p": 0.9, "frequency_penalty": 0.5, "logprobs": 2},
        {"temperature": 0, "min_tokens": 3, "bad_word_token_ids": ((7,), (8, 9))},
        {"temperature": 0},
    ]
    draw = random.Random(index)
    sampling = SamplingParams(**{"max_tokens": 5, "seed": index, "ignore_eos": True, **ways[index]})  # type: ignore[arg-type]
    prompt = tuple(draw.choices(range(3, 256), k=draw.randint(1, 12)))
    return GenerationRequest(request_id=RequestId(f"r{index}"), prompt_token_ids=prompt, sampling=sampling)


def answers(engine: Engine) -> dict[str, list[int]]:
    said: dict[str, list[int]] = {}
    for index in range(5):
        engine.add(request(index))
    while engine.has_work:
        for output in engine.step():
            said.setdefault(output.request_id, []).extend(output.token_ids)
    engine.audit()
    return said


def eager_engine(loaded: LoadedModel) -> Engine:
    runner = StreamRunner(loaded.decoder, loaded.pages, loaded.limits.eos_token_ids, CONFIG.max_num_seqs, graphs=None)
    kv = KvManager(loaded.pages.shape[2], CONFIG.page_size, Reuse(enabled=True))
    return Engine(runner, kv, replace(CONFIG, overlap=False), loaded.limits)


def main(directory: str) -> None:
    loaded = load_model(ModelConfig(path=directory, served_name="m", dtype="float32"), CONFIG)
    expected = answers(eager_engine(loaded))
    _Choice.interprets = True
    replayed = answers(build_engine(record_graphs(loaded, CONFIG, Rerun()), CONFIG))
    json.dump({"expected": expected, "replayed": replayed}, sys.stdout)


if __name__ == "__main__":
    main(sys.argv[1])
