"""Decode steps of whole engines: scheduler, runner and sampler, from the end of one step to the end of the next.

With graphs and without; and, of the former, the recorded step alone, without a host: its time by that of the engine's
step is the share of it in which the GPU is busy at the least (what is sampled comes on top).
"""

import time
from dataclasses import replace

import numpy as np
import torch

from bench.gpu.bench import Bench
from bench.gpu.figures import OURS, Figure
from kvasir_protocol.config import EngineConfig
from kvasir_protocol.ids import RequestId
from kvasir_protocol.request import GenerationRequest, SamplingParams
from kvasir_workers.engine import Engine
from kvasir_workers.load import LoadedModel, build_engine, page_layout
from kvasir_workers.model.decoder import Decoder
from kvasir_workers.ready import make_ready, record_graphs
from kvasir_workers.request_check import EngineLimits
from kvasir_workers.runner.batch import StepArrays
from kvasir_workers.runner.recorder import Rerun

PAGE_SIZE = 16

_NUM_STEPS = {"cuda": 64, "cpu": 4}

EAGER, ALONE = "eager", "the graph alone"


def measure_steps(bench: Bench, part: str, name: str, decoder: Decoder, num_sequences: int, num_bytes: float) -> None:
    """num_bytes: what a step reads at the least."""
    num_steps = _NUM_STEPS[bench.device.type]
    config = EngineConfig(
        device="cuda" if bench.device.type == "cuda" else "cpu",
        page_size=PAGE_SIZE,
        max_num_seqs=num_sequences,
        enable_prefix_caching=False,
        overlap=True,
    )
    context = bench.sizes.model_context
    loaded = _loaded(bench, decoder, num_sequences, context + 2 * num_steps)
    case = f"{name}, {num_sequences} x {context}"
    if time.monotonic() > bench.deadline:
        bench.figures.append(Figure(part, case, OURS, None, note="left out: no time left"))
        return
    recorded, eager = _ready(loaded, config), replace(config, enforce_eager=True)
    seconds = {
        OURS: _step_s(build_engine(recorded, config), num_sequences, context, num_steps),
        ALONE: _replay_s(recorded, num_sequences, context, num_steps),
        EAGER: _step_s(build_engine(_ready(loaded, eager), eager), num_sequences, context, num_steps),
    }
    bench.figures += [Figure(part, case, way, its_seconds, num_bytes) for way, its_seconds in seconds.items()]


def _loaded(bench: Bench, decoder: Decoder, num_sequences: int, num_tokens: int) -> LoadedModel:
    """Pages for so many sequences of so many tokens, and one more token each."""
    spec = decoder.spec
    num_pages = num_sequences * (-(-num_tokens // PAGE_SIZE) + 1)
    shape = (spec.num_layers, 2, num_pages, PAGE_SIZE, spec.num_kv_heads, spec.head_dim)
    return LoadedModel(
        decoder=decoder,
        pages=torch.zeros(shape, dtype=decoder.dtype, device=bench.device),
        segment=None,
        layout=page_layout(spec, PAGE_SIZE, decoder.dtype, "random"),
        limits=EngineLimits(max_sequence_tokens=num_tokens, vocab_size=spec.vocab_size, eos_token_ids=frozenset()),
    )


def _ready(loaded: LoadedModel, config: EngineConfig) -> LoadedModel:
    if loaded.pages.is_cuda:
        return make_ready(loaded, config)
    return loaded if config.enforce_eager else record_graphs(loaded, config, Rerun())


def _step_s(engine: Engine, num_sequences: int, context: int, num_steps: int) -> float:
    """The mean of steps in which every sequence says a token, greedily."""
    sampling = SamplingParams(temperature=0, max_tokens=2 * num_steps, ignore_eos=True, seed=0)
    for index in range(num_sequences):
        engine.add(_request(index, context, sampling))
    while engine.totals["generated_tokens"] < num_sequences or engine.num_waiting:
        engine.step()
    engine.step()
    started_at, num_before = time.perf_counter(), engine.totals["num_steps"]
    for _ in range(num_steps):
        engine.step()
    seconds = (time.perf_counter() - started_at) / (engine.totals["num_steps"] - num_before)
    engine.close()
    return seconds


def _request(index: int, context: int, sampling: SamplingParams) -> GenerationRequest:
    return GenerationRequest(request_id=RequestId(f"r{index}"), prompt_token_ids=(1,) * context, sampling=sampling)


@torch.inference_mode()
def _replay_s(loaded: LoadedModel, num_sequences: int, context: int, num_runs: int) -> float:
    """The mean of replays, one after the other, with nothing of the host between them."""
    graphs = loaded.graphs
    assert graphs is not None, "measured without graphs"
    width = -(-context // PAGE_SIZE)
    step = StepArrays(
        token_ids=np.ones(num_sequences, dtype=np.int64),
        coming=np.empty((2, 0), dtype=np.int64),
        starts=np.full(num_sequences, context - 1),
        counts=np.ones(num_sequences, dtype=np.int64),
        samples=np.ones(num_sequences, dtype=np.bool_),
        tables=np.arange(num_sequences * width).reshape(num_sequences, width),
    )
    graphs.run(step)
    _finish(loaded)
    started_at = time.perf_counter()
    for _ in range(num_runs):
        graphs.replay(num_sequences)
    _finish(loaded)
    return (time.perf_counter() - started_at) / num_runs


def _finish(loaded: LoadedModel) -> None:
    if loaded.pages.is_cuda:
        torch.cuda.synchronize()
