"""The flags of `kvasir bench`; vLLM's names where the meaning is the same."""

import argparse
import json
import math
from pathlib import Path
from typing import Any

from kvasir.cli.options import STEP_TOKENS_HELP

DATASETS = ("random", "prefix_repetition", "multi-turn", "sharegpt", "mooncake")


def add_bench_options(parser: argparse.ArgumentParser) -> None:
    """The measurements, each a command of its own."""
    benches = parser.add_subparsers(dest="bench", required=True, metavar="WHAT")
    for name, what, more, add in (
        ("serve", "load on a running server: throughput and latencies", "Any OpenAI-compatible server.", _serve),
        ("throughput", "many prompts at once, without a server", "In this process, without a server.", _throughput),
        ("latency", "one batch again and again, without a server", "In this process, without a server.", _latency),
        ("startup", "from `kvasir serve` to the first token, phase by phase", "Each start is stopped again.", _startup),
        ("compare", "two results of `kvasir bench serve` side by side", "vLLM's result files are read too.", _compare),
        ("step", "what the host does for each step of the engine", "With a model that computes nothing.", _step),
    ):
        bench = benches.add_parser(name, help=what, description=f"{what[0].upper()}{what[1:]}. {more}")
        add(bench)


def _serve(parser: argparse.ArgumentParser) -> None:
    _target(parser.add_argument_group("the server"))
    _workload(parser.add_argument_group("what is asked"))
    _traffic(parser.add_argument_group("when it is asked"))
    _outcome(parser.add_argument_group("what is told"))


def _target(group: argparse._ArgumentGroup) -> None:
    add = group.add_argument
    add("--base-url", "--url", metavar="URL", help="where it listens; otherwise --host and --port say so")
    add("--host", default="127.0.0.1", help="(%(default)s)")
    add("--port", type=int, default=8000, help="(%(default)s)")
    add("--backend", choices=("openai", "openai-chat"), default="openai", help="completions or chat (%(default)s)")
    add("--endpoint", metavar="PATH", help="another path than that of the backend")
    add("--model", metavar="NAME", help="what requests call it (default: the first of /v1/models)")
    add("--api-key", metavar="KEY", help="default: the environment's KVASIR_API_KEY or OPENAI_API_KEY")
    add("--header", nargs="*", default=[], metavar="NAME=VALUE", help="more headers of each request")
    add("--extra-body", type=_json_map, default={}, metavar="JSON", help="more fields of each request; null removes")
    add("--temperature", type=float, help="default: the server's")
    add(
        "--ignore-eos", action=argparse.BooleanOptionalAction, help="answers of full length (default: all but sharegpt)"
    )
    add("--request-timeout", type=float, default=3600.0, metavar="S", help="for a whole answer (%(default)s)")


def _workload(group: argparse._ArgumentGroup) -> None:
    add = group.add_argument
    add("--dataset-name", choices=DATASETS, default="random", help="(%(default)s)")
    add("--dataset-path", type=Path, metavar="FILE", help="of sharegpt (JSON) and mooncake (JSONL)")
    add("--num-prompts", type=int, metavar="N", help="multi-turn: conversations (default: 1000; mooncake: all lines)")
    add("--seed", type=int, default=0, help="(%(default)s)")
    add(
        "--tokenizer",
        type=Path,
        metavar="DIR",
        help="counts prompts exactly (default: the server's /tokenize, or words)",
    )
    add("--input-len", "--random-input-len", type=int, default=1024, metavar="TOKENS", help="a prompt's (%(default)s)")
    add(
        "--output-len", "--random-output-len", "--sharegpt-output-len", "--prefix-repetition-output-len",
        type=int, metavar="TOKENS", help="an answer's (default: 128; sharegpt: that of the file's answer)",
    )  # fmt: skip
    add("--random-range-ratio", type=float, default=0.0, metavar="R", help="lengths vary by this share (%(default)s)")
    add("--random-prefix-len", type=int, default=0, metavar="TOKENS", help="common to all prompts (%(default)s)")
    for name, default in (("prefix-len", 256), ("suffix-len", 256), ("num-prefixes", 10)):
        add(f"--prefix-repetition-{name}", type=int, default=default, metavar="N", help="(%(default)s)")
    add("--multi-turn-num-turns", type=int, default=4, metavar="N", help="of each conversation (%(default)s)")
    add("--trace-speed", type=float, default=1.0, metavar="X", help="so many times as fast as recorded (%(default)s)")


def _traffic(group: argparse._ArgumentGroup) -> None:
    add = group.add_argument
    add("--request-rate", type=float, default=math.inf, metavar="N", help="per second (default: all at once)")
    add(
        "--burstiness", type=float, default=1.0, metavar="X", help="1 Poisson, less bursts, more evenness (%(default)s)"
    )
    add("--max-concurrency", type=int, metavar="N", help="requests (or conversations) at once; more wait here")
    add("--ramp-up-strategy", choices=("linear", "exponential"), help="instead of --request-rate")
    add("--ramp-up-start-rps", type=float, metavar="N", help="requests per second at the start")
    add("--ramp-up-end-rps", type=float, metavar="N", help="and at the end")
    add("--num-warmups", type=int, default=0, metavar="N", help="requests before, not counted (%(default)s)")


def _outcome(group: argparse._ArgumentGroup) -> None:
    add = group.add_argument
    add(
        "--percentile-metrics",
        default="ttft,tpot,itl",
        metavar="LIST",
        help="also e2el, client_queue_time (%(default)s)",
    )
    add("--metric-percentiles", default="99", metavar="LIST", help="such as 50,90,99.9 (%(default)s)")
    add("--goodput", nargs="+", metavar="NAME:MS", help="count requests within ttft:MS tpot:MS e2el:MS")
    add("--save-result", action="store_true", help="write a JSON file with vLLM's keys")
    add("--save-detailed", action="store_true", help="with an entry for each request")
    add("--result-dir", type=Path, default=Path(), metavar="DIR", help="(default: here)")
    add("--result-filename", metavar="NAME", help="default: from label, rate, model and date")
    add("--label", help="what the file calls this run (default: the backend)")
    add("--metadata", nargs="*", default=[], metavar="KEY=VALUE", help="more for the file")
    add("--plot", type=Path, metavar="DIR", help="draw latencies and throughput as PNG (needs matplotlib)")
    add("--ceiling", action="store_true", help="measure first what this client can do at the most")
    add("--disable-tqdm", action="store_true", help="no progress bar")


def _offline(parser: argparse.ArgumentParser, input_len: int) -> None:
    add = parser.add_argument
    add("--model", type=Path, metavar="DIR", help="a model folder (default: the demo model)")
    add("--input-len", type=int, default=input_len, metavar="TOKENS", help="(%(default)s)")
    add("--output-len", type=int, default=128, metavar="TOKENS", help="(%(default)s)")
    add("--seed", type=int, default=0, help="(%(default)s)")
    add("--dtype", choices=("auto", "float32", "bfloat16", "float16"), default="auto")
    add("--device", choices=("auto", "cpu", "cuda"), default="auto")
    add("--max-num-seqs", type=int, default=256, metavar="N", help="(%(default)s)")
    add("--max-num-batched-tokens", type=int, metavar="N", help=STEP_TOKENS_HELP)
    add("--enable-prefix-caching", action=argparse.BooleanOptionalAction, default=True)
    add("--num-threads", type=int, metavar="N", help="of torch on the CPU")
    add("--output-json", type=Path, metavar="FILE", help="write the figures as JSON")


def _throughput(parser: argparse.ArgumentParser) -> None:
    _offline(parser, 1024)
    parser.add_argument("--num-prompts", type=int, default=1000, metavar="N", help="(%(default)s)")
    parser.add_argument("--random-range-ratio", type=float, default=0.0, metavar="R", help="(%(default)s)")


def _latency(parser: argparse.ArgumentParser) -> None:
    _offline(parser, 32)
    for name, default in (("batch-size", 8), ("num-iters-warmup", 10), ("num-iters", 30)):
        parser.add_argument(f"--{name}", type=int, default=default, metavar="N", help="(%(default)s)")


def _startup(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--num-iters", type=int, default=3, metavar="N", help="starts (%(default)s)")
    add("--timeout", type=float, default=600.0, metavar="S", help="for one start (%(default)s)")
    add("--output-json", type=Path, metavar="FILE", help="write the figures as JSON")
    add("serve_arguments", nargs="*", metavar="ARGUMENT", help="behind --: for `kvasir serve`, such as MODEL")


def _compare(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("first", type=Path, metavar="A.json")
    parser.add_argument("second", type=Path, metavar="B.json")
    parser.add_argument("--force", action="store_true", help="also when they are of different workloads")


def _step(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--sequences", type=int, nargs="+", default=[1, 32, 256, 1024], metavar="N")
    add("--steps", type=int, default=200, metavar="N", help="measured of each (default: %(default)s)")
    add("--prompt-tokens", type=int, default=512, metavar="N", help="of a sequence (%(default)s)")
    add("--device-ms", type=float, default=5.0, metavar="MS", help="of the pretended device (%(default)s)")
    add("--json", action="store_true", help="print the figures as JSON")


def _json_map(text: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text!r} is no JSON: {error}") from error
    if not isinstance(value, dict):
        raise argparse.ArgumentTypeError(f"{text!r} is no JSON object")
    return value
