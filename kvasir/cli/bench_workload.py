"""What `kvasir bench serve` asks, as its flags say."""

import argparse
import json
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import Any

from kvasir.bench.datasets import TraceLine, mooncake, sharegpt
from kvasir.bench.text_source import CountedWords, PlainWords, words_of_tokenizer
from kvasir.bench.workloads import (
    Conversation,
    Lengths,
    SharedPrefixes,
    TextSource,
    multi_turn,
    prefix_repetition,
    random_prompts,
)
from kvasir_protocol.errors import ConfigError

DEFAULT_NUM_PROMPTS = 1000
DEFAULT_OUTPUT_LEN = 128

FROM_FILE = ("sharegpt", "mooncake")

SIZES = (
    "num_prompts", "input_len", "output_len", "prefix_repetition_prefix_len", "prefix_repetition_suffix_len",
    "prefix_repetition_num_prefixes", "multi_turn_num_turns", "max_concurrency", "trace_speed", "request_timeout",
)  # fmt: skip
"""Flags whose value, if there is one, is above 0."""


def find_text_source(tokenizer: Path | None, count_by_server: Callable[[str], int | None]) -> TextSource:
    """By the tokenizer, else by the server if it counts, else words. Raises ConfigError."""
    if tokenizer is not None:
        return words_of_tokenizer(tokenizer)
    # A server with another /tokenize may answer with nothing.
    if not count_by_server(" the"):
        return PlainWords()
    return CountedWords(lambda text: count_by_server(text) or 0)


def check_sizes(options: argparse.Namespace) -> None:
    """Raise ConfigError for numbers that can't be."""
    for name in SIZES:
        value = getattr(options, name)
        if value is not None and value <= 0:
            raise ConfigError(f"--{name.replace('_', '-')} must be above 0, got {value}")
    if not 0 <= options.random_range_ratio < 1:
        raise ConfigError(f"--random-range-ratio must be at least 0 and below 1, got {options.random_range_ratio}")
    if options.random_prefix_len < 0 or options.num_warmups < 0:
        raise ConfigError("--random-prefix-len and --num-warmups must not be below 0")
    if (options.dataset_path is not None) != (options.dataset_name in FROM_FILE):
        needs = "needs --dataset-path" if options.dataset_path is None else "takes no --dataset-path"
        raise ConfigError(f"--dataset-name {options.dataset_name} {needs}")


def make_workload(options: argparse.Namespace, source: TextSource) -> list[Conversation]:
    """Raises ConfigError for a file that is no such data set."""
    num_prompts = options.num_prompts or DEFAULT_NUM_PROMPTS
    output_len = options.output_len or DEFAULT_OUTPUT_LEN
    lengths = Lengths(input_len=options.input_len, output_len=output_len, range_ratio=options.random_range_ratio)
    match options.dataset_name:
        case "random":
            return random_prompts(num_prompts, lengths, source, options.seed, options.random_prefix_len)
        case "prefix_repetition":
            shape = SharedPrefixes(
                num_prefixes=options.prefix_repetition_num_prefixes,
                prefix_len=options.prefix_repetition_prefix_len,
                suffix_len=options.prefix_repetition_suffix_len,
                output_len=output_len,
            )
            return prefix_repetition(num_prompts, shape, source, options.seed)
        case "multi-turn":
            return multi_turn(num_prompts, options.multi_turn_num_turns, lengths, source, options.seed)
        case "sharegpt":
            entries = read_sharegpt(options.dataset_path)
            return sharegpt(entries, num_prompts, source, options.seed, options.output_len)
        case name:
            assert name == "mooncake", name
            lines = read_trace(options.dataset_path, options.num_prompts)
            return mooncake(lines, source, options.seed, options.trace_speed)


def describe_workload(options: argparse.Namespace, source: TextSource) -> dict[str, Any]:
    """What has to be alike for two results to be compared."""
    described = {"dataset_name": options.dataset_name, "backend": options.backend, "seed": options.seed}
    described |= {"exact_lengths": not isinstance(source, PlainWords), "ignore_eos": ignores_eos(options)}
    named = {
        "random": ("input_len", "output_len", "random_range_ratio", "random_prefix_len"),
        "prefix_repetition": (
            "prefix_repetition_prefix_len", "prefix_repetition_suffix_len", "prefix_repetition_num_prefixes",
            "output_len",
        ),
        "multi-turn": ("input_len", "output_len", "random_range_ratio", "multi_turn_num_turns"),
        "sharegpt": ("output_len",),
        "mooncake": ("trace_speed",),
    }  # fmt: skip
    described |= {name: getattr(options, name) for name in named[options.dataset_name]}
    if options.dataset_path is not None:
        described["dataset"] = options.dataset_path.name
    return described


def ignores_eos(options: argparse.Namespace) -> bool:
    """Made-up prompts are to have answers of the length that was asked for."""
    said: bool | None = options.ignore_eos
    return said if said is not None else options.dataset_name != "sharegpt"


def read_sharegpt(path: Path) -> list[dict[str, Any]]:
    """Raises ConfigError."""
    try:
        entries = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path} can't be read: {error}") from error
    if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        raise ConfigError(f"{path} is no ShareGPT file: a JSON list of conversations")
    return entries


def read_trace(path: Path, num_lines: int | None = None) -> list[TraceLine]:
    """The first lines of a Mooncake trace, or all. Raises ConfigError."""
    try:
        with path.open(encoding="utf-8") as file:
            lines = [_trace_line(path, line) for line in islice(filter(str.strip, file), num_lines)]
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} can't be read: {error}") from error
    if not lines:
        raise ConfigError(f"{path} holds no request")
    return sorted(lines, key=lambda line: line.timestamp_ms)


def _trace_line(path: Path, line: str) -> TraceLine:
    try:
        fields = json.loads(line)
        return TraceLine(
            float(fields["timestamp"]),
            int(fields["input_length"]),
            int(fields["output_length"]),
            tuple(map(int, fields["hash_ids"])),
        )
    except (ValueError, KeyError, TypeError) as error:
        raise ConfigError(
            f'{path} is no Mooncake trace: {line.strip()[:80]!r} is not {{"timestamp": ms, "input_length": …, '
            f'"output_length": …, "hash_ids": […]}} ({error!r})'
        ) from error
