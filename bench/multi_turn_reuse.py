"""Multi-turn chats: pages reused up to the token against whole pages only, against none, and what page events cost.

    python -m bench.multi_turn_reuse

All chats run at once, turn by turn; each turn's prompt is the whole history and a new question. Printed for each
variant: prompt tokens that had to be computed (of all that were sent), the mean time to first token of all turns but
the first, and throughput as a ratio to reuse up to the token. All variants run in one process, one after another in
each round, in turning order, and the ratios are taken within a round; seconds are the process's own on one CPU thread,
so that neighbours on a shared machine count little.
"""

import argparse
import random
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
import zmq

from bench.engines import load_demo
from bench.figures import spread
from kvasir_protocol.config import EngineConfig
from kvasir_protocol.ids import RequestId
from kvasir_protocol.request import GenerationRequest, SamplingParams
from kvasir_protocol.sockets import bind_publisher, bind_server, start_gatekeeper
from kvasir_workers.engine import Engine
from kvasir_workers.kv.event_log import KvEventLog
from kvasir_workers.kv.event_server import EventSockets, KvEventServer
from kvasir_workers.kv.manager import KvManager, Reuse
from kvasir_workers.load import LoadedModel
from kvasir_workers.runner.executor import CallersThread
from kvasir_workers.runner.model_runner import ModelRunner

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
    runner = ModelRunner(loaded.decoder, loaded.pages, loaded.limits.eos_token_ids, CallersThread())
    return Engine(runner, kv, config, loaded.limits)


@dataclass(slots=True)
class Measured:
    """seconds and num_prompt_tokens of a round; ttft_s of all turns but the first."""

    seconds: float = 0.0
    num_computed: int = 0
    num_prompt_tokens: int = 0
    ttft_s: list[float] = field(default_factory=list)


def chat(engine: Engine, arguments: argparse.Namespace, seed: int) -> Measured:
    """All chats at once, turn by turn; each turn adds a question of its own."""
    draw, measured, started_at = random.Random(seed), Measured(), time.process_time()
    histories: list[list[int]] = [[] for _ in range(arguments.chats)]
    for turn in range(arguments.turns):
        for index, history in enumerate(histories):
            history += draw.choices(range(256), k=arguments.question)
            sampling = SamplingParams(temperature=0, max_tokens=arguments.answer, seed=0, ignore_eos=True)
            name = RequestId(f"{seed}/{turn}/{index}")
            engine.add(GenerationRequest(request_id=name, prompt_token_ids=tuple(history), sampling=sampling))
        asked_at = time.process_time()
        while engine.has_work:
            for output in engine.step():
                histories[int(output.request_id.rsplit("/", 1)[1])] += output.token_ids
                if turn and output.first_index == 0:
                    measured.ttft_s.append(time.process_time() - asked_at)
    measured.seconds = time.process_time() - started_at
    counters = engine.counters()
    measured.num_computed, measured.num_prompt_tokens = counters.computed_prompt_tokens, counters.prompt_tokens
    return measured


def measure(variants: dict[str, Callable[[], Engine]], arguments: argparse.Namespace) -> dict[str, list[Measured]]:
    rounds: dict[str, list[Measured]] = {name: [] for name in variants}
    for round_index in range(arguments.rounds + 1):
        shift = round_index % len(variants)
        for name in [*variants][shift:] + [*variants][:shift]:
            measured = chat(variants[name](), arguments, round_index)
            if round_index:  # the first round warms up
                rounds[name].append(measured)
    return rounds


def show(rounds: dict[str, list[Measured]]) -> None:
    print(f"{'':22}{'computed':>10}{'of':>8}{'ttft ms':>28}   throughput / that of tokens")
    for name, measured in rounds.items():
        first = measured[0]
        ttft_ms = spread([1000 * statistics.mean(one.ttft_s) for one in measured], 1)
        ratios = spread([ours.seconds / one.seconds for ours, one in zip(rounds["tokens"], measured, strict=True)])
        print(f"{name:22}{first.num_computed:10}{first.num_prompt_tokens:8}{ttft_ms:>28}   {ratios}")


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--chats", type=int, default=4)
    parser.add_argument("--turns", type=int, default=6, help="at least 2")
    parser.add_argument("--question", type=int, default=20, help="tokens")
    parser.add_argument("--answer", type=int, default=12, help="tokens")
    parser.add_argument("--rounds", type=int, default=7)
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    config, loaded = EngineConfig(), load_demo()
    with served_events() as log:

        def told() -> Engine:
            log.take()
            return build(loaded, config, Reuse(), log)

        variants: dict[str, Callable[[], Engine]] = {
            "nothing reused": lambda: build(loaded, config, Reuse(enabled=False)),
            "whole pages": lambda: build(loaded, config, Reuse(min_copied_tokens=None)),
            "tokens": lambda: build(loaded, config, Reuse()),
            "tokens, with events": told,
        }
        rounds = measure(variants, options)
    print(f"{options.chats} chats of {options.turns} turns, {options.question} tokens asked, {options.answer} answered")
    show(rounds)


if __name__ == "__main__":
    main()
