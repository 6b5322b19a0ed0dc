"""What a page costs: computed, restored from host memory, read from disk; and what that does to prompts that return.

    python bench/kv_tiers.py [--threads N]        the embedded demo model on the CPU

Texts of 1,000 tokens are asked for in turn, again and again; the device's pages hold one and a half of them. Printed:
the median time of an answer (one token) in each round after the first, without tiers, with host memory that holds all,
and with host memory that holds four and a disk that holds all.
"""

import argparse
import random
import tempfile
import time
from statistics import median

import torch

from kvasir.demo import demo_model_path
from kvasir_protocol.config import EngineConfig, ModelConfig
from kvasir_protocol.ids import RequestId
from kvasir_protocol.request import GenerationRequest, SamplingParams
from kvasir_workers.kv.offload.open_tiers import open_tiers
from kvasir_workers.load import build_engine, load_model
from kvasir_workers.memory import page_bytes
from kvasir_workers.model.loader import load_spec

NUM_TEXTS, NUM_TOKENS, NUM_ROUNDS, PAGE_SIZE = 8, 1000, 5, 16
DEVICE_PAGES, FOUR_TEXTS_PAGES, ALL_PAGES = 96, 260, 600


def measure(name: str, *, host_pages: int, disk_pages: int) -> None:
    """Print a row."""
    size = page_bytes(load_spec(demo_model_path()), PAGE_SIZE, torch.float32)
    with tempfile.TemporaryDirectory() as folder:
        config = EngineConfig(
            device="cpu",
            page_size=PAGE_SIZE,
            kv_cache_bytes=DEVICE_PAGES * size,
            host_cache_bytes=host_pages * size,
            disk_cache_bytes=disk_pages * (size + 100),
            disk_cache_path=folder if disk_pages else None,
        )
        loaded = load_model(ModelConfig(path=str(demo_model_path()), served_name="demo", dtype="float32"), config)
        opened = open_tiers(loaded.pages, config)
        engine = build_engine(loaded, config, opened=opened)
        draw = random.Random(0)
        texts = [tuple(draw.choices(range(3, 2000), k=NUM_TOKENS)) for _ in range(NUM_TEXTS)]
        times = []
        for number in range(NUM_ROUNDS * NUM_TEXTS):
            sampling = SamplingParams(temperature=0, max_tokens=1, seed=0, ignore_eos=True)
            request = GenerationRequest(
                request_id=RequestId(str(number)), prompt_token_ids=texts[number % NUM_TEXTS], sampling=sampling
            )
            started_at = time.perf_counter()
            engine.add(request)
            while engine.has_work:
                engine.step()
            times.append(time.perf_counter() - started_at)
        counters = engine.counters()
        cached = counters.cached_prompt_tokens / counters.prompt_tokens
        print(f"{name:24} answer {1e3 * median(times[NUM_TEXTS:]):7.2f} ms   {100 * cached:3.0f} % of prompts cached")
        if opened is not None:
            prices = opened.tiers.prices.prices()
            costs = {
                "computed": (prices.token_s or 0) * PAGE_SIZE,
                "host": prices.host_page_s,
                "disk": prices.disk_page_s,
            }
            print("    a page:", ", ".join(f"{key} {1e6 * cost:.0f} us" for key, cost in costs.items() if cost))
            opened.tiers.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=1)
    torch.set_num_threads(parser.parse_args().threads)
    measure("no tiers", host_pages=0, disk_pages=0)
    measure("host memory", host_pages=ALL_PAGES, disk_pages=0)
    measure("host memory and disk", host_pages=FOUR_TEXTS_PAGES, disk_pages=ALL_PAGES)


if __name__ == "__main__":
    main()
