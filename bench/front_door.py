"""What the front door costs: tokens per second, and time per token, of `kvasir serve` beside those of the bare engine.

    python -m bench.front_door                                  models a and b of bench/peers/setup, 1, 8 and 32 at once
    python -m bench.front_door --models b --threads 2 --rounds 5
    python -m bench.front_door --output DIR                     rounds.json and table.md there, after every turn

Both have the same model in bfloat16 and the same number of threads and places, and are asked the same number of
requests of the same lengths, as many at once, each followed by the next. They take turns: the server waits while the
engine runs in the bench's own process, without HTTP, text, sockets or Ray; the client of `bench.peers` asks the server,
which streams, on the same cores.
"""

import argparse
import json
import random
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median

import torch

from bench.figures import spread
from bench.peers.cells import SHAPES, Asking, Cell, make_bench, measure, seed_of
from bench.peers.launch import MAX_SEQUENCES, Launch, Peer, kvasir, other_peer
from bench.peers.options import HOME, chosen_models
from bench.peers.process import free_port, running
from kvasir.bench.text_source import CountedWords, words_of_tokenizer
from kvasir_protocol.config import EngineConfig, ModelConfig
from kvasir_protocol.ids import RequestId
from kvasir_protocol.request import GenerationRequest, SamplingParams
from kvasir_workers.engine import Engine
from kvasir_workers.load import build_engine, load_model

SHAPE = SHAPES[0]
LIMIT_S = 600.0
KV_BYTES = 2**30


@dataclass(frozen=True, slots=True)
class Speed:
    """Of one run. token_ms: median over requests of the mean time from one token to the next."""

    tokens_per_s: float
    token_ms: float


@dataclass(frozen=True, slots=True)
class Turn:
    """Both, one right after the other."""

    model: str
    concurrency: int
    bare: Speed
    served: Speed

    @property
    def ratio(self) -> float:
        return self.served.tokens_per_s / self.bare.tokens_per_s

    @property
    def added_ms(self) -> float:
        return self.served.token_ms - self.bare.token_ms


class BareEngine:
    """The engine as a replica has it, with nobody in front."""

    def __init__(self, model: Path, threads: int) -> None:
        torch.set_num_threads(threads)
        self._config = EngineConfig(device="cpu", max_num_seqs=MAX_SEQUENCES, kv_cache_bytes=KV_BYTES)
        self._loaded = load_model(ModelConfig(path=str(model), served_name="m", dtype="bfloat16"), self._config)

    def run(self, asking: Asking, cell: Cell, seed: int) -> Speed:
        """An engine of its own, whose cache is empty; a few requests before, as the server has."""
        engine = build_engine(self._loaded, self._config)
        warm_up = self._requests(asking.num_warmups, cell, seed=-seed - 1)
        _answer_all(engine, warm_up, cell.concurrency)
        requests = self._requests(asking.num_requests(cell), cell, seed)
        started_s = time.perf_counter()
        times = _answer_all(engine, requests, cell.concurrency)
        elapsed_s = time.perf_counter() - started_s
        gaps = [(of[-1] - of[0]) / (len(of) - 1) for of in times]
        return Speed(sum(map(len, times)) / elapsed_s, 1e3 * median(gaps))

    def _requests(self, count: int, cell: Cell, seed: int) -> list[GenerationRequest]:
        draw, shape = random.Random(f"{seed}"), cell.shape
        sampling = SamplingParams(temperature=0, max_tokens=shape.output, ignore_eos=True, seed=0)
        return [
            GenerationRequest(
                request_id=RequestId(f"{seed}/{number}"),
                prompt_token_ids=tuple(draw.choices(range(3, self._loaded.limits.vocab_size), k=shape.unique)),
                sampling=sampling,
            )
            for number in range(count)
        ]


def _answer_all(engine: Engine, requests: Sequence[GenerationRequest], concurrency: int) -> list[list[float]]:
    """When each token of each request came."""
    times: dict[RequestId, list[float]] = {request.request_id: [] for request in requests}
    waiting = iter(requests)
    for _, request in zip(range(concurrency), waiting, strict=False):
        engine.add(request)
    while engine.has_work:
        outputs = engine.step()
        now = time.perf_counter()
        for output in outputs:
            times[output.request_id].extend([now] * len(output.token_ids))
            if output.finish_reason is not None and (following := next(waiting, None)) is not None:
                engine.add(following)
    return list(times.values())


@dataclass(frozen=True, slots=True)
class Server:
    """`kvasir serve`, or another, ready."""

    peer: Peer
    launch: Launch
    process_id: int
    source: CountedWords

    def run(self, asking: Asking, cell: Cell, seed: int) -> Speed:
        """Exits where requests failed: what is left would be no speed."""
        bench = make_bench(self.peer, self.launch, cell, asking, self.source, seed)
        result = measure(bench, self.source, self.process_id, asking.limit_s)
        if result["failed"] or result["interrupted"]:
            sys.exit(f"{cell.name}: {result['failed']} requests failed, interrupted: {result['interrupted']}")
        return Speed(result["output_throughput"], result["median_tpot_ms"])


def take_turns(peer: Peer, model: Path, threads: int, asking: Asking, rounds: int) -> Iterator[Turn]:
    """Each round begins with the other one."""
    bare = BareEngine(model, threads)
    with tempfile.TemporaryDirectory() as scratch:
        launch = Launch(model=model, port=free_port(), threads=threads, scratch=Path(scratch))
        with running(peer, launch) as (process, _):
            server = Server(peer, launch, process.pid, words_of_tokenizer(model))
            for round_index in range(rounds):
                for cell in asking.cells:
                    runs: list[Callable[[Asking, Cell, int], Speed]] = [bare.run, server.run]
                    order = (0, 1) if round_index % 2 == 0 else (1, 0)
                    speeds = {index: runs[index](asking, cell, seed_of(round_index, cell)) for index in order}
                    yield Turn(model.name, cell.concurrency, speeds[0], speeds[1])


def table(turns: Sequence[Turn]) -> str:
    """In Markdown: medians over the rounds (lowest to highest)."""
    lines = [
        "| model, at once | tokens/s: bare | served | served / bare | ms per token: bare | served | added |",
        "|---|---|---|---|---|---|---|",
    ]
    for model, concurrency in dict.fromkeys((turn.model, turn.concurrency) for turn in turns):
        own = [turn for turn in turns if (turn.model, turn.concurrency) == (model, concurrency)]
        cells = [
            f"{model}, {concurrency}",
            spread([turn.bare.tokens_per_s for turn in own], 0),
            spread([turn.served.tokens_per_s for turn in own], 0),
            spread([turn.ratio for turn in own]),
            spread([turn.bare.token_ms for turn in own]),
            spread([turn.served.token_ms for turn in own]),
            spread([turn.added_ms for turn in own]),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--home", type=Path, default=HOME, help="what bench/peers/setup made (%(default)s)")
    add("--models", nargs="+", default=["a", "b"], metavar="M", help="folders, or names in HOME/models (a b)")
    add("--threads", type=int, nargs="+", default=[1, 2], metavar="N", help="of the engine: for all, or for each (1 2)")
    add("--concurrency", type=int, nargs="+", default=[1, 8, 32], choices=[1, 8, 32], help="requests at once (1 8 32)")
    add("--rounds", type=int, default=5, help="(%(default)s)")
    add("--per-place", type=int, default=2, metavar="N", help="requests for each that runs at once (%(default)s)")
    add("--server", metavar="COMMAND", help="another server; {port}, {model}, {threads} in it")
    add("--output", type=Path, metavar="DIR", help="write rounds.json and table.md there, after every turn")
    options = parser.parse_args(arguments)
    cells = [Cell(SHAPE, concurrency) for concurrency in options.concurrency]
    asking = Asking(cells=cells, num_per_place=options.per_place, num_warmups=2, limit_s=LIMIT_S)
    peer = kvasir() if options.server is None else other_peer("other", options.server)
    turns: list[Turn] = []
    for model, threads in chosen_models(options):
        for turn in take_turns(peer, model, threads, asking, options.rounds):
            turns.append(turn)
            print(f"{turn.model}, {turn.concurrency} at once: served / bare {turn.ratio:.2f}", file=sys.stderr)
            if options.output is not None:
                options.output.mkdir(parents=True, exist_ok=True)
                (options.output / "rounds.json").write_text(json.dumps([asdict(each) for each in turns], indent=1))
                (options.output / "table.md").write_text(table(turns) + "\n")
    print(table(turns))


if __name__ == "__main__":
    main()
