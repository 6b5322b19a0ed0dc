"""Requests admitted at each step against whole batches, by how far the lengths of answers lie apart.

    python -m bench.continuous_batching              the embedded demo model, real seconds
    python -m bench.continuous_batching --simulate   no model: a step's seconds come from a formula (bench/engines.py)

The same engine answers the same requests, all in line from the start, in three ways:

    continuous   whoever ends makes place for the next at once
    static       the next batch is admitted when the last of the one before has ended; who has ended costs nothing
    padded       static, and as transformers' generate does it: prompts are filled up to the longest of their batch, and
                 all go on until the longest answer is there, though what is beyond a request's own answer counts for
                 nothing

Printed: tokens asked for per second, and how many times as many continuous is; the median of the rounds and between
what they lie. Each round runs the three one after the other, in turning order; real seconds are the process's own on
one CPU thread, so that neighbours on a shared machine count little.
"""

import argparse
import random
import statistics
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from bench.engines import VOCAB_SIZE, MakeEngine, simulated, with_demo_model
from bench.figures import spread
from kvasir_protocol.config import EngineConfig
from kvasir_protocol.ids import RequestId
from kvasir_protocol.request import GenerationRequest, SamplingParams
from kvasir_workers.engine import Engine

PROMPT_TOKENS = (8, 64)
MEAN_ANSWER = 32
LONGEST_ANSWER = 256


@dataclass(frozen=True, slots=True)
class Exchange:
    """A prompt, and how many tokens its answer has."""

    prompt: tuple[int, ...]
    num_answer: int


def _equal(dice: random.Random) -> int:
    return MEAN_ANSWER


def _uniform(dice: random.Random) -> int:
    return dice.randint(1, 2 * MEAN_ANSWER - 1)


def _exponential(dice: random.Random) -> int:
    return min(LONGEST_ANSWER, 1 + round(dice.expovariate(1 / (MEAN_ANSWER - 1))))


ANSWERS: dict[str, Callable[[random.Random], int]] = {
    f"all {MEAN_ANSWER}": _equal,
    f"1 to {2 * MEAN_ANSWER - 1}": _uniform,
    f"exponential, up to {LONGEST_ANSWER}": _exponential,
}


def exchanges(draw: Callable[[random.Random], int], number: int, seed: int) -> list[Exchange]:
    dice = random.Random(seed)
    return [
        Exchange(tuple(dice.choices(range(VOCAB_SIZE), k=dice.randint(*PROMPT_TOKENS))), draw(dice))
        for _ in range(number)
    ]


def batches(wanted: Sequence[Exchange], size: int) -> Iterator[Sequence[Exchange]]:
    for start in range(0, len(wanted), size):
        yield wanted[start : start + size]


def padded(batch: Sequence[Exchange]) -> list[Exchange]:
    """All as long as the longest. The padding differs from request to request, or else the cache would hold it."""
    num_prompt = max(len(exchange.prompt) for exchange in batch)
    num_answer = max(exchange.num_answer for exchange in batch)
    return [
        Exchange((index,) * (num_prompt - len(exchange.prompt)) + exchange.prompt, num_answer)
        for index, exchange in enumerate(batch)
    ]


def answer_all(engine: Engine, wanted: Sequence[Exchange]) -> None:
    for exchange in wanted:
        sampling = SamplingParams(temperature=0, seed=0, ignore_eos=True, max_tokens=exchange.num_answer)
        name = RequestId(str(id(exchange)))
        engine.add(GenerationRequest(request_id=name, prompt_token_ids=exchange.prompt, sampling=sampling))
    while engine.has_work:
        engine.step()


def continuous(engine: Engine, wanted: Sequence[Exchange], size: int) -> None:
    answer_all(engine, wanted)


def static(engine: Engine, wanted: Sequence[Exchange], size: int) -> None:
    for batch in batches(wanted, size):
        answer_all(engine, batch)


def static_padded(engine: Engine, wanted: Sequence[Exchange], size: int) -> None:
    for batch in batches(wanted, size):
        answer_all(engine, padded(batch))


WAYS: dict[str, Callable[[Engine, Sequence[Exchange], int], None]] = {
    "continuous": continuous,
    "static": static,
    "padded": static_padded,
}


def measure(make_engine: MakeEngine, wanted: Sequence[Exchange], size: int, num_rounds: int) -> dict[str, list[float]]:
    """Of each way its tokens per second, round by round."""
    config = EngineConfig(max_num_seqs=size, device="cpu", enable_prefix_caching=False, max_waiting_requests=None)
    num_tokens = sum(exchange.num_answer for exchange in wanted)
    rates: dict[str, list[float]] = {name: [] for name in WAYS}
    for round_index in range(num_rounds):
        shift = round_index % len(WAYS)
        for name in [*WAYS][shift:] + [*WAYS][:shift]:
            engine, clock = make_engine(config)
            started_at = clock()
            WAYS[name](engine, wanted, size)
            rates[name].append(num_tokens / (clock() - started_at))
    return rates


def show(name: str, rates: dict[str, list[float]]) -> None:
    print(f"answers of {name} tokens")
    for way, values in rates.items():
        times = [ours / other for ours, other in zip(rates["continuous"], values, strict=True)]
        compared = "" if way == "continuous" else f"continuous is {spread(times)} times as fast"
        print(f"  {way:12}{statistics.median(values):8.0f} tokens/s   {compared}")


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--simulate", action="store_true", help="no model, seconds by formula")
    parser.add_argument("--batch", type=int, default=16, help="requests that run at once")
    parser.add_argument("--requests", type=int, default=48)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args(arguments)
    make_engine = simulated if options.simulate else with_demo_model()
    for name, draw in ANSWERS.items():
        show(name, measure(make_engine, exchanges(draw, options.requests, seed=0), options.batch, options.rounds))


if __name__ == "__main__":
    main()
