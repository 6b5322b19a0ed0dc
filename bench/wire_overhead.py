"""What a second rank costs a step, before it computes anything.

    python -m bench.wire_overhead

Two processes on this host share a model without layers, whose embedding and head say nothing: what is left is the plan,
as one message from the leader to its follower, both laying the batch out, one all-reduce for the embedding and one
gather of the logits, through shared memory where that can be had and over gloo otherwise. Every sequence decodes one
token a step. By wall clock, medians of rounds and between what they lie:

    tp=1     microseconds of a step of one rank
    tp=2     of a step of two; the difference is the wire
    plan     bytes of the message
    reduce   microseconds of one all-reduce of the step's hidden states, of which each layer of a model has two: from
             steps with ten more of them
"""

import argparse
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor

from bench.figures import spread
from kvasir_protocol.config import EngineConfig
from kvasir_protocol.ids import RequestId
from kvasir_protocol.request import GenerationRequest, SamplingParams
from kvasir_workers.engine import Engine
from kvasir_workers.kv.manager import KvManager, pages_for
from kvasir_workers.model.loader import load_spec
from kvasir_workers.parallel.collectives import Collectives, Meeting
from kvasir_workers.parallel.gang_runner import Follower, GangRunner
from kvasir_workers.parallel.links import SocketReceiver, SocketSender
from kvasir_workers.parallel.mesh import GangShape, RankPlace
from kvasir_workers.parallel.pipeline import Stage
from kvasir_workers.parallel.shard import cut_model
from kvasir_workers.parallel.torch_groups import file_store
from kvasir_workers.request_check import EngineLimits
from kvasir_workers.runner.executor import CallersThread

ROOT = Path(__file__).parents[1]
MODEL = ROOT / "kvasir" / "demo_model"
SHAPE = GangShape(tensor_parallel_size=2)
PAGE_SIZE = 16
PROMPT_TOKENS = 64
WARM_UP_STEPS = 20
MORE_SUMS = 10


class SilentDecoder(torch.nn.Module):
    """Of the demo model's width and vocabulary; nothing is computed, but so many sums of it are made."""

    def __init__(self, vocab_size: int, hidden_size: int, collectives: Collectives, num_sums: int) -> None:
        super().__init__()
        self._vocab_size, self._hidden_size = vocab_size, hidden_size
        self._collectives, self._num_sums = collectives, num_sums
        self.dtype, self.cache_scales = torch.float32, ()

    def embedding(self, token_ids: Tensor) -> Tensor:
        return torch.zeros(len(token_ids), self._hidden_size)

    def run_layers(self, hidden: Tensor, *rest: object) -> tuple[Tensor, Tensor]:
        for _ in range(self._num_sums):
            self._collectives.add_up(hidden)
        return hidden, hidden

    def normalise(self, update: Tensor, _: Tensor) -> Tensor:
        return update

    def logits(self, hidden: Tensor) -> Tensor:
        return torch.zeros(len(hidden), self._vocab_size)


class CountingSender:
    """Knows how large the last frame was."""

    def __init__(self, sender: SocketSender) -> None:
        self._sender = sender
        self.num_bytes = 0

    def send(self, frame: bytes) -> None:
        self.num_bytes = len(frame)
        self._sender.send(frame)

    def close(self) -> None:
        self._sender.close()


def make_stage(shape: GangShape, rank: int, store: str, num_sums: int) -> Stage:
    shard = cut_model(load_spec(MODEL), RankPlace(shape, rank))
    collectives = Collectives(shard.place, Meeting(store=file_store(store, shape.num_ranks)), torch.device("cpu"))
    decoder = SilentDecoder(shard.local.vocab_size, shard.local.hidden_size, collectives, num_sums)
    pages = torch.zeros(0, 2, 1, PAGE_SIZE, 1, 2)
    return Stage(decoder, pages, shard, collectives)  # type: ignore[arg-type]


def make_engine(stage: Stage, sender: CountingSender, num_sequences: int, num_steps: int) -> Engine:
    """All sequences have their prompts behind them."""
    longest = PROMPT_TOKENS + WARM_UP_STEPS + num_steps + 2
    config = EngineConfig(page_size=PAGE_SIZE, max_num_seqs=num_sequences, max_num_batched_tokens=8192, overlap=False)
    kv = KvManager(num_sequences * pages_for(longest, PAGE_SIZE), PAGE_SIZE)
    limits = EngineLimits(max_sequence_tokens=longest, vocab_size=2048, eos_token_ids=frozenset({2}))
    engine = Engine(GangRunner(stage, sender, limits.eos_token_ids, CallersThread()), kv, config, limits)
    sampling = SamplingParams(max_tokens=longest - PROMPT_TOKENS, seed=0, temperature=0, ignore_eos=True)
    for index in range(num_sequences):
        prompt = (3 + index, *range(2, PROMPT_TOKENS + 1))
        engine.add(GenerationRequest(request_id=RequestId(str(index)), prompt_token_ids=prompt, sampling=sampling))
    while engine.num_waiting or engine.counters().generated_tokens < num_sequences:
        engine.step()
    return engine


def microseconds(act: Callable[[], object], number: int) -> float:
    """The median of so many."""
    times = []
    for _ in range(number):
        start = time.perf_counter()
        act()
        times.append(1e6 * (time.perf_counter() - start))
    return statistics.median(times)


def steps_us(stage: Stage, sender: CountingSender, num_sequences: int, num_steps: int) -> float:
    engine = make_engine(stage, sender, num_sequences, num_steps)
    for _ in range(WARM_UP_STEPS):
        engine.step()
    found = microseconds(engine.step, num_steps)
    while engine.has_work:
        engine.step()
    return found


@contextmanager
def two_ranks(num_sums: int) -> Iterator[tuple[Stage, CountingSender]]:
    """The leader's stage; the follower is a child process, which does nothing but follow."""
    ours, theirs = socket.socketpair()
    path = os.pathsep.join(entry for entry in sys.path if entry)
    environment = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
    with tempfile.TemporaryDirectory() as folder:
        store = str(Path(folder) / "store")
        command = [sys.executable, "-m", "bench.wire_overhead", "--follow", str(theirs.fileno()), store, str(num_sums)]
        with subprocess.Popen(command, pass_fds=[theirs.fileno()], cwd=ROOT, env=environment):
            theirs.close()
            sender = CountingSender(SocketSender({1: ours}, deadline_s=30.0))
            try:
                yield make_stage(SHAPE, 0, store, num_sums), sender
            finally:
                sender.close()


def follow(descriptor: int, store: str, num_sums: int) -> None:
    """The child, until the leader is gone."""
    torch.set_num_threads(1)
    stage = make_stage(SHAPE, 1, store, num_sums)
    Follower(stage).serve(SocketReceiver(socket.socket(fileno=descriptor)))


def measure(batches: Sequence[int], num_steps: int, rounds: int) -> None:
    torch.set_num_threads(1)
    nobody = CountingSender(SocketSender({}, deadline_s=1.0))
    print(f"{'sequences':>9}  {'tp=1, us':24}{'tp=2, us':28}{'difference':>10}{'plan':>8}{'reduce, us':>12}")
    with tempfile.TemporaryDirectory() as folder, two_ranks(0) as (stage, sender), two_ranks(MORE_SUMS) as others:
        alone = make_stage(GangShape(), 0, str(Path(folder) / "alone"), 0)
        for number in batches:
            one = [steps_us(alone, nobody, number, num_steps) for _ in range(rounds)]
            two = [steps_us(stage, sender, number, num_steps) for _ in range(rounds)]
            more = [steps_us(*others, number, num_steps) for _ in range(rounds)]
            one_us, two_us, more_us = (statistics.median(values) for values in (one, two, more))
            print(
                f"{number:9}  {spread(one, 0):24}{spread(two, 0):28}{two_us - one_us:10.0f}{sender.num_bytes:8}"
                f"{(more_us - two_us) / MORE_SUMS:12.0f}"
            )


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 8, 32])
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--follow", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.follow:
        follow(int(options.follow[0]), options.follow[1], int(options.follow[2]))
    else:
        measure(options.batches, options.steps, options.rounds)


if __name__ == "__main__":
    main()
