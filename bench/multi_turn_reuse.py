"""Multi-turn chats: pages reused up to the token against whole pages only, and what page events cost.

    python bench/multi_turn_reuse.py --chats 4 --turns 4 --rounds 7

All variants run in one process, one after another in each round, in turning order; the figures are ratios within a
round, so that a machine that slows down meanwhile slows all of them.
"""

import argparse
import random
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
import zmq

from kvasir_protocol.config import EngineConfig, ModelConfig
from kvasir_protocol.ids import RequestId
from kvasir_protocol.request import GenerationRequest, SamplingParams
from kvasir_protocol.sockets import bind_publisher, bind_server, start_gatekeeper
from kvasir_workers.engine import Engine
from kvasir_workers.kv.event_log import KvEventLog
from kvasir_workers.kv.event_server import EventSockets, KvEventServer
from kvasir_workers.kv.manager import KvManager, Reuse
from kvasir_workers.load import LoadedModel, load_model
from kvasir_workers.runner.model_runner import ModelRunner

DEMO_MODEL = Path(__file__).parents[1] / "kvasir" / "demo_model"
SECRET = b"s" * 32


@contextmanager
def served_events() -> Iterator[KvEventLog]:
    """A log whose events are published, to nobody."""
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    gatekeeper = start_gatekeeper(context, SECRET)
    publisher, _ = bind_publisher(context, SECRET, "127.0.0.1", 0)
    replay, _ = bind_server(context, SECRET, "127.0.0.1", 0)
    log = KvEventLog()
    server = KvEventServer(context, EventSockets(publisher=publisher, replay=replay), log, "bench")
    server.start()
    yield log
    server.stop()
    gatekeeper.stop()
    context.destroy(linger=0)


def build(loaded: LoadedModel, config: EngineConfig, reuse: Reuse, log: KvEventLog | None = None) -> Engine:
    kv = KvManager(loaded.pages.shape[2], config.page_size, reuse, log)
    runner = ModelRunner(loaded.decoder, loaded.pages, loaded.limits.eos_token_ids)
    return Engine(runner, kv, config, loaded.limits)


def chat(engine: Engine, arguments: argparse.Namespace, seed: int) -> None:
    """All chats at once, turn by turn; each turn adds a question of its own."""
    draw = random.Random(seed)
    histories: list[list[int]] = [[] for _ in range(arguments.chats)]
    for turn in range(arguments.turns):
        for index, history in enumerate(histories):
            history += draw.choices(range(256), k=arguments.question)
            sampling = SamplingParams(temperature=0, max_tokens=arguments.answer, seed=0, ignore_eos=True)
            name = RequestId(f"{seed}/{turn}/{index}")
            engine.add(GenerationRequest(request_id=name, prompt_token_ids=tuple(history), sampling=sampling))
        while engine.has_work:
            for output in engine.step():
                histories[int(output.request_id.rsplit("/", 1)[1])] += output.token_ids


def measure(engine: Engine, arguments: argparse.Namespace, seed: int) -> float:
    start = time.perf_counter()
    chat(engine, arguments, seed)
    return time.perf_counter() - start


def describe(name: str, ratios: list[float]) -> str:
    return f"{name:38} {statistics.median(ratios):6.3f}   (from {min(ratios):.3f} to {max(ratios):.3f})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--model", type=Path, default=DEMO_MODEL)
    parser.add_argument("--chats", type=int, default=4)
    parser.add_argument("--turns", type=int, default=4)
    parser.add_argument("--question", type=int, default=20, help="tokens")
    parser.add_argument("--answer", type=int, default=12, help="tokens")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    config = EngineConfig(kv_cache_bytes=64 * 2**20)
    loaded = load_model(ModelConfig(path=str(arguments.model), served_name="bench"), config)
    whole_pages = Reuse(min_copied_tokens=None)
    with served_events() as log:
        variants: dict[str, Callable[[], Engine]] = {
            "whole pages": lambda: build(loaded, config, whole_pages),
            "tokens": lambda: build(loaded, config, Reuse()),
            "tokens, with events": lambda: build(loaded, config, Reuse(), log),
        }
        times: dict[str, list[float]] = {name: [] for name in variants}
        computed: dict[str, int] = {}
        for round_index in range(arguments.rounds + 1):
            names = list(variants)
            shift = round_index % len(names)
            for name in names[shift:] + names[:shift]:
                engine = variants[name]()
                log.take()
                elapsed_s = measure(engine, arguments, round_index)
                if round_index:  # the first round warms up
                    times[name].append(elapsed_s)
                computed[name] = engine.counters().computed_prompt_tokens
    print(f"{arguments.chats} chats of {arguments.turns} turns, {arguments.question} tokens asked, {arguments.answer}")
    for name in variants:
        print(f"{name:22} {statistics.median(times[name]):.3f} s a round, {computed[name]} prompt tokens computed")
    by_round = {name: list(zip(times[name], times["tokens"], strict=True)) for name in variants}
    print(describe("throughput, tokens / whole pages", [whole / ours for whole, ours in by_round["whole pages"]]))
    print(
        describe("throughput, with events / without", [ours / told for told, ours in by_round["tokens, with events"]])
    )


if __name__ == "__main__":
    main()
