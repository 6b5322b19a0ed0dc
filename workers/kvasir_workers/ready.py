"""What a GPU does before a model may be called ready: record its graphs, and compute once whatever compiles something.

After that nothing compiles any more; if something does, COMPILE_WATCH of that rank's process tells.
"""

import logging
import time
from collections.abc import Iterable, Iterator
from dataclasses import replace

import torch

from kvasir_kernels.compile_watch import COMPILE_WATCH
from kvasir_kernels.sampling_dispatch import mask_logits
from kvasir_protocol.config import EngineConfig
from kvasir_protocol.ids import RequestId
from kvasir_protocol.request import GenerationRequest, SamplingParams, TokenBias
from kvasir_workers.kv.manager import pages_for
from kvasir_workers.load import LoadedModel, build_engine
from kvasir_workers.parallel.rank_graphs import make_rank_ready
from kvasir_workers.request_check import EngineLimits
from kvasir_workers.resolve import uses_graphs
from kvasir_workers.runner.decode_graphs import GraphLimits, decode_graphs
from kvasir_workers.runner.recorder import CudaRecorder, Recorder

_log = logging.getLogger(__name__)

_ANSWER_TOKENS = 2
"""The second comes from a step of decodes, where a sequence may have so many."""

_MANY_LOGPROBS = 21
"""More than are usually asked for, which is computed otherwise."""


def make_ready(loaded: LoadedModel, config: EngineConfig) -> LoadedModel:
    """The model with all that its device needs; on a CPU as it is. To be called before anybody is served."""
    device = loaded.pages.device
    if device.type == "cpu":
        return loaded
    COMPILE_WATCH.watch_triton()
    with COMPILE_WATCH.permit():
        if loaded.lead is not None:
            graphs = make_rank_ready(loaded.lead.stage, config, loaded.limits.max_sequence_tokens)
            loaded = replace(loaded, graphs=graphs)
        elif uses_graphs(loaded.decoder.spec, device, config):
            loaded = record_graphs(loaded, config, CudaRecorder(device))
        warm_up(loaded, config)
    COMPILE_WATCH.arm()
    if loaded.lead is not None:
        loaded.lead.end_warm_up()
    return loaded


def record_graphs(loaded: LoadedModel, config: EngineConfig, recorder: Recorder) -> LoadedModel:
    """The model with graphs of its decode steps."""
    limits = GraphLimits(
        max_rows=config.max_num_seqs,
        max_pages=pages_for(loaded.limits.max_sequence_tokens, config.page_size),
        page_size=config.page_size,
        vocab_size=loaded.decoder.spec.vocab_size,
    )
    started_at = time.perf_counter()
    graphs = decode_graphs(loaded.decoder, loaded.pages, limits, recorder)
    _log.info("recorded %d graphs of decode steps in %.1f s", graphs.num_graphs, time.perf_counter() - started_at)
    return replace(loaded, graphs=graphs)


def warm_up(loaded: LoadedModel, config: EngineConfig) -> None:
    """Compute once what steps may be made of, in an engine of its own that leaves nothing behind but junk in pages."""
    num_before, started_at = COMPILE_WATCH.num_counted, time.perf_counter()
    config = replace(
        config,
        enable_prefix_caching=False,
        host_cache_bytes=0,
        disk_cache_bytes=0,
        disk_cache_path=None,
        max_waiting_requests=None,
        max_waiting_tokens=None,
    )
    engine = build_engine(loaded, config)
    for wave in waves(loaded.limits, config):
        for request in wave:
            engine.add(request)
        while engine.has_work:
            engine.step()
    engine.audit()
    engine.close()
    _mask_once(loaded)
    num_compiled, seconds = COMPILE_WATCH.num_counted - num_before, time.perf_counter() - started_at
    _log.info("warmed up in %.1f s: %d steps, %d kernels", seconds, engine.totals["num_steps"], num_compiled)


def waves(limits: EngineLimits, config: EngineConfig) -> Iterator[list[GenerationRequest]]:
    """Each is computed alone: prompts of every power of two and of a full step, then every way to sample, together.

    What is more than a sequence may have, or a step takes of one, is several prompts. Nothing where no request fits.
    """
    answer_tokens = min(_ANSWER_TOKENS, limits.max_sequence_tokens - 1)
    if answer_tokens < 1:
        return
    longest = min(limits.max_sequence_tokens - answer_tokens, config.max_prefill_chunk_tokens or config.step_tokens)
    full = min(config.step_tokens, config.max_num_seqs * longest)
    greedy = SamplingParams(temperature=0, max_tokens=answer_tokens, seed=0)
    for size in (*(2**power for power in range((full - 1).bit_length())), full):
        prompts = [min(longest, size - start) for start in range(0, size, longest)]
        yield [_request(f"{size} tokens, prompt {index}", tokens, greedy) for index, tokens in enumerate(prompts)]
    yield [_request(f"sampling {index}", 1, sampling) for index, sampling in enumerate(_ways_to_sample(answer_tokens))]


def _ways_to_sample(answer_tokens: int) -> Iterable[SamplingParams]:
    common = {"max_tokens": answer_tokens, "ignore_eos": True, "seed": 0}
    ways: list[dict[str, object]] = [
        {"temperature": 0},
        {"temperature": 1.0},
        {"top_k": 5, "top_p": 0.9, "min_p": 0.01},
        {"repetition_penalty": 1.1, "presence_penalty": 0.1, "frequency_penalty": 0.1},
        {"logprobs": 1},
        {"logprobs": _MANY_LOGPROBS},
        {"logit_bias": (TokenBias(token_id=0, bias=1.0),), "min_tokens": 1, "stop_token_ids": (0,)},
        {"allowed_token_ids": (0, 1), "bad_word_token_ids": ((0,),)},
    ]
    return [SamplingParams(**{**common, **way}) for way in ways]  # type: ignore[arg-type]


def _request(name: str, num_prompt_tokens: int, sampling: SamplingParams) -> GenerationRequest:
    return GenerationRequest(
        request_id=RequestId(f"warm-up: {name}"), prompt_token_ids=(0,) * num_prompt_tokens, sampling=sampling
    )


@torch.inference_mode()
def _mask_once(loaded: LoadedModel) -> None:
    """As structured answers need it: compiling a grammar for it would need the tokenizer."""
    width = loaded.limits.vocab_size
    logits = torch.zeros(2, width, device=loaded.pages.device)
    everything = torch.full((1, -(-width // 32)), -1, dtype=torch.int32)
    mask_logits(logits, (0,), everything)
