"""Result files, in the shape of `vllm bench serve --save-result`."""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from kvasir_protocol.errors import ConfigError

DETAILS = (
    "input_lens", "output_lens", "ttfts", "itls", "latencies", "start_times", "queue_times",
    "generated_texts", "errors",
)  # fmt: skip
"""Keys with an entry for each request: only in files that were asked for with --save-detailed."""


def rate_in_json(rate: float) -> float | str:
    """JSON has no infinity; vLLM writes it so."""
    return "inf" if math.isinf(rate) else rate


def file_name(label: str, request_rate: float, max_concurrency: int | None, model: str, date: str) -> str:
    """vLLM's pattern."""
    concurrency = "" if max_concurrency is None else f"-concurrency{max_concurrency}"
    return f"{label}-{request_rate}qps{concurrency}-{model.rsplit('/', 1)[-1]}-{date}.json"


def save(result: Mapping[str, Any], path: Path, *, detailed: bool) -> None:
    """Write it, making the folder. Raises ConfigError if that can't be."""
    kept = {key: value for key, value in result.items() if detailed or key not in DETAILS}
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(kept) + "\n", encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"can't write {path}: {error.strerror}") from error


def load(path: Path) -> dict[str, Any]:
    """Raises ConfigError for what is no result file, ours or vLLM's."""
    try:
        result = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path} can't be read: {error}") from error
    if not isinstance(result, dict) or "request_throughput" not in result:
        raise ConfigError(f"{path} is no result of `kvasir bench serve` or `vllm bench serve`")
    return result
