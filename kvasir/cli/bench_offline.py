"""`kvasir bench throughput` and `kvasir bench latency`."""

import argparse
import json
from collections.abc import Mapping
from pathlib import Path

from kvasir.bench.offline import measure_latency, measure_throughput
from kvasir.bench.text_source import words_of_tokenizer
from kvasir.bench.workloads import Lengths, Turn, random_prompts
from kvasir.demo import demo_model_path
from kvasir_protocol.errors import ConfigError

SIZES = ("input_len", "output_len", "num_prompts", "batch_size", "num_iters", "max_num_seqs", "max_num_batched_tokens")


def bench_offline(options: argparse.Namespace) -> int:
    """Raises KvasirError."""
    _check_sizes(options)
    model = options.model or demo_model_path()
    if not model.is_dir():
        raise ConfigError(f"no model folder {model}")
    is_latency = options.bench == "latency"
    num_batches = options.num_iters_warmup + options.num_iters if is_latency else 1
    batch_size = options.batch_size if is_latency else options.num_prompts
    batches = _make_batches(options, model, num_batches, batch_size)

    from kvasir.llm import LLM

    with LLM(
        model,
        dtype=options.dtype,
        device=options.device,
        max_num_seqs=options.max_num_seqs,
        max_num_batched_tokens=options.max_num_batched_tokens,
        enable_prefix_caching=options.enable_prefix_caching,
        num_threads=options.num_threads,
    ) as llm:
        if is_latency:
            measure_latency(llm, batches[: options.num_iters_warmup])
            latency = measure_latency(llm, batches[options.num_iters_warmup :])
            figures = latency.to_json()
        else:
            # The first step takes memory and loads kernels that the others find.
            measure_latency(llm, [batches[0][:1]])
            figures = dict(measure_throughput(llm, batches[0]).to_json())
    _show(figures)
    if options.output_json is not None:
        write_json(options.output_json, figures)
    return 0


def _check_sizes(options: argparse.Namespace) -> None:
    for name in SIZES:
        size = getattr(options, name, None)
        if size is not None and size < 1:
            raise ConfigError(f"--{name.replace('_', '-')} must be at least 1, got {size}")
    if not 0 <= getattr(options, "random_range_ratio", 0) < 1 or getattr(options, "num_iters_warmup", 0) < 0:
        raise ConfigError("--random-range-ratio must be in [0, 1), --num-iters-warmup at least 0")


def _make_batches(options: argparse.Namespace, model: Path, num_batches: int, batch_size: int) -> list[list[Turn]]:
    """No two prompts are alike: a batch finds nothing of an earlier one in the prefix cache."""
    lengths = Lengths(
        input_len=options.input_len,
        output_len=options.output_len,
        range_ratio=getattr(options, "random_range_ratio", 0.0),
    )
    source = words_of_tokenizer(model)
    conversations = random_prompts(num_batches * batch_size, lengths, source, options.seed)
    turns = [conversation.turns[0] for conversation in conversations]
    return [turns[start : start + batch_size] for start in range(0, len(turns), batch_size)]


def _show(figures: Mapping[str, object]) -> None:
    if "avg_latency" in figures:
        print(f"average of a batch: {figures['avg_latency']:.4f} s")
        percentiles = figures["percentiles"]
        assert isinstance(percentiles, dict)
        for percentile, seconds in percentiles.items():
            print(f"  {percentile} %: {seconds:.4f} s")
        return
    print(
        f"throughput: {figures['requests_per_second']:.2f} requests/s, {figures['tokens_per_second']:.1f} tokens/s, "
        f"{figures['output_tokens_per_second']:.1f} output tokens/s"
    )


def write_json(path: Path, figures: object) -> None:
    """Raises ConfigError if it can't be written."""
    try:
        path.write_text(json.dumps(figures, indent=2) + "\n")
    except OSError as error:
        raise ConfigError(f"can't write {path}: {error.strerror}") from error
