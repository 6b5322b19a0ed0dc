"""What a page costs: computed, restored from host memory, read from disk; and what that does to prompts that return.

    python -m bench.kv_tiers [--threads N]        the embedded demo model on the CPU

Texts are asked for in turn, again and again; the device's pages hold one and a half of them. Printed: the median time
of an answer (one token) in each round after the first, without tiers, with host memory that holds all, and with host
memory that holds half of them and a disk that holds all.
"""

import argparse
import random
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

import torch

from kvasir.demo import demo_model_path
from kvasir_protocol.config import EngineConfig, ModelConfig
from kvasir_protocol.ids import RequestId
from kvasir_protocol.request import GenerationRequest, SamplingParams
from kvasir_workers.engine import Engine
from kvasir_workers.kv.manager import pages_for
from kvasir_workers.kv.offload.open_tiers import open_tiers
from kvasir_workers.kv.offload.page_file import RECORD_OVERHEAD_BYTES
from kvasir_workers.load import build_engine, load_model
from kvasir_workers.memory import page_bytes
from kvasir_workers.model.loader import load_spec

PAGE_SIZE = 16


@dataclass(frozen=True, slots=True)
class Habit:
    """num_texts prompts of num_tokens each, asked for in turn, num_rounds times."""

    num_texts: int
    num_tokens: int
    num_rounds: int

    @property
    def text_pages(self) -> int:
        return pages_for(self.num_tokens, PAGE_SIZE)

    def ask_all(self, engine: Engine) -> list[float]:
        """Seconds of each answer."""
        draw = random.Random(0)
        texts = [tuple(draw.choices(range(3, 2000), k=self.num_tokens)) for _ in range(self.num_texts)]
        return [_answer_s(engine, str(i), texts[i % self.num_texts]) for i in range(self.num_rounds * self.num_texts)]


def _answer_s(engine: Engine, name: str, text: tuple[int, ...]) -> float:
    sampling = SamplingParams(temperature=0, max_tokens=1, seed=0, ignore_eos=True)
    started_at = time.perf_counter()
    engine.add(GenerationRequest(request_id=RequestId(name), prompt_token_ids=text, sampling=sampling))
    while engine.has_work:
        engine.step()
    return time.perf_counter() - started_at


def measure(name: str, habit: Habit, *, host_pages: int, disk_pages: int) -> None:
    """Print a row."""
    size = page_bytes(load_spec(demo_model_path()), PAGE_SIZE, torch.float32)
    with tempfile.TemporaryDirectory() as folder:
        config = EngineConfig(
            device="cpu",
            page_size=PAGE_SIZE,
            kv_cache_bytes=3 * habit.text_pages // 2 * size,
            host_cache_bytes=host_pages * size,
            disk_cache_bytes=disk_pages * (size + RECORD_OVERHEAD_BYTES),
            disk_cache_path=folder if disk_pages else None,
        )
        loaded = load_model(ModelConfig(path=str(demo_model_path()), served_name="demo", dtype="float32"), config)
        opened = open_tiers(loaded.pages, config)
        engine = build_engine(loaded, config, opened=opened)
        times = habit.ask_all(engine)
        counters = engine.counters()
        cached = counters.cached_prompt_tokens / counters.prompt_tokens
        answer_ms = 1e3 * median(times[habit.num_texts :])
        print(f"{name:24} answer {answer_ms:7.2f} ms   {100 * cached:3.0f} % of prompts cached")
        if opened is not None:
            prices = opened.tiers.prices.prices()
            computed_s = (prices.token_s or 0) * PAGE_SIZE
            costs = {"computed": computed_s, "host": prices.host_page_s, "disk": prices.disk_page_s}
            print("    a page:", ", ".join(f"{key} {1e6 * cost:.0f} us" for key, cost in costs.items() if cost))
            opened.tiers.close()


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--texts", type=int, default=8)
    parser.add_argument("--tokens", type=int, default=1000, help="of a text")
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    habit = Habit(options.texts, options.tokens, options.rounds)
    all_pages = (options.texts + 1) * habit.text_pages
    measure("no tiers", habit, host_pages=0, disk_pages=0)
    measure("host memory", habit, host_pages=all_pages, disk_pages=0)
    measure("host memory and disk", habit, host_pages=all_pages // 2, disk_pages=all_pages)


if __name__ == "__main__":
    main()
