"""What structured answers cost beside free text.

    python bench/structured_output.py                   the embedded demo model: tokens per second, by form
    python bench/structured_output.py --vocab 151936    no model: the microseconds of a step's masks, by rows

The forms take turns, round after round, so that what else the machine does falls on all of them alike. Tokens per
second are of all tokens that were generated; CPU time is the process's own, and feels the neighbours less.
"""

import argparse
import json
import os
import random
import statistics
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from kvasir import LLM, SamplingParams
from kvasir.demo import demo_model_path
from kvasir_protocol.structured import StructuredOutput, structured_output
from kvasir_workers.grammar.source import grammar_source
from kvasir_workers.grammar.state import Grammar
from kvasir_workers.grammar.token_table import TokenSource, TokenTable
from kvasir_workers.runner.grammar_mask import StructuredRow, apply_masks, make_masks

SCHEMA = {
    "type": "object",
    "properties": {
        "title": {"type": "string"},
        "year": {"type": "integer"},
        "tags": {"type": "array", "items": {"type": "string"}},
        "parts": {
            "type": "array",
            "items": {
                "type": "object",
                "properties": {"name": {"type": "string"}, "done": {"type": "boolean"}},
                "required": ["name", "done"],
                "additionalProperties": False,
            },
        },
    },
    "required": ["title", "year", "tags", "parts"],
    "additionalProperties": False,
}
FORMS: dict[str, StructuredOutput] = {
    "JSON schema": structured_output({"json": SCHEMA}),
    "regex": structured_output({"regex": r"([A-Z][a-z]*( [a-z]+)*[.!?] )*"}),
    "any JSON": structured_output({"json_object": True}),
}
FREE = "free text"

EOS = 1
"""Of the vocabulary that is made up here."""

MAX_PIECES = 3


@dataclass(frozen=True, slots=True)
class Load:
    """What one form is given in a round: more requests than run at once, since an answer in a form may end early."""

    num_requests: int
    max_tokens: int
    num_at_once: int

    def params(self, name: str) -> list[SamplingParams]:
        """min_tokens keeps forms from ending early where they could go on; free text ignores the end token."""
        wanted = FORMS.get(name)
        length: Mapping[str, int | bool] = {"min_tokens": self.max_tokens} if wanted else {"ignore_eos": True}
        return [
            SamplingParams(seed=seed, max_tokens=self.max_tokens, structured_outputs=wanted, **length)  # type: ignore[arg-type]
            for seed in range(self.num_requests)
        ]


@dataclass(frozen=True, slots=True)
class Speed:
    """Tokens per second of wall time, and per second of the process's CPU time."""

    wall: float
    cpu: float


def measure(llm: LLM, load: Load, name: str) -> Speed:
    prompts = [f"A page of keys and values, number {i}:" for i in range(load.num_requests)]
    params = load.params(name)
    wall, cpu = time.perf_counter(), time.process_time()
    outputs = llm.generate(prompts, params, use_tqdm=False)
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    num_tokens = sum(len(choice.token_ids) for output in outputs for choice in output.outputs)
    return Speed(num_tokens / wall, num_tokens / cpu)


def compare_with_free_text(load: Load, num_rounds: int, num_threads: int) -> None:
    names = [FREE, *FORMS]
    speeds: dict[str, list[Speed]] = {name: [] for name in names}
    with LLM(num_threads=num_threads, max_num_seqs=load.num_at_once) as llm:
        for name in names:
            measure(llm, load, name)
        for index in range(num_rounds):
            # Each form stands at each place of a round, so that none always follows the same one.
            for name in names[index % len(names) :] + names[: index % len(names)]:
                speeds[name].append(measure(llm, load, name))
    print(f"demo model, {load.num_requests} answers of up to {load.max_tokens} tokens, {load.num_at_once} at once")
    print(f"{'':12} {'tokens/s: median (quartiles)':>30} {'loss':>7} {'tokens/CPU s':>30} {'loss':>7}")
    for name in names:
        columns = []
        for kind in ("wall", "cpu"):
            values = [getattr(speed, kind) for speed in speeds[name]]
            ratios = [
                getattr(mine, kind) / getattr(free, kind) for mine, free in zip(speeds[name], speeds[FREE], strict=True)
            ]
            low, middle, high = statistics.quantiles(values, n=4)
            columns.append(f"{f'{middle:.0f} ({low:.0f} to {high:.0f})':>30} {1 - statistics.median(ratios):>7.1%}")
        print(f"{name:12} {' '.join(columns)}")


def write_vocabulary(directory: Path, size: int) -> None:
    """A byte-level tokenizer of so many tokens: the demo model's, and words made of up to three of them."""
    dice = random.Random(0)
    known = json.loads((demo_model_path() / "tokenizer.json").read_text())["model"]["vocab"]
    pieces = [piece for piece in known if len(piece) <= 6 and not piece.startswith("<|")]
    words = dict.fromkeys(["<pad>", "<eos>", *sorted(pre_tokenizers.ByteLevel.alphabet()), *pieces])
    while len(words) < size:
        words["".join(dice.choices(pieces, k=dice.randint(1, MAX_PIECES)))] = None
    tokenizer = Tokenizer(models.BPE({word: i for i, word in enumerate(list(words)[:size])}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(["<pad>", "<eos>"])
    tokenizer.save(str(directory / "tokenizer.json"))


class Answers:
    """Random answers of one form, a row each; one that ends begins anew."""

    def __init__(self, grammar: Grammar, num_rows: int) -> None:
        self._grammar = grammar
        self._states = [grammar.start() for _ in range(num_rows)]

    def rows(self) -> list[StructuredRow]:
        sampling = SamplingParams()
        return [StructuredRow(row, state, 0, sampling) for row, state in enumerate(self._states)]

    def go_on(self, token_ids: list[int]) -> None:
        for row, token_id in enumerate(token_ids):
            if not self._states[row].accept([token_id]) or self._states[row].has_ended:
                self._states[row] = self._grammar.start()


@contextmanager
def microseconds(times: list[float]) -> Iterator[None]:
    """Append what the block takes, behind the others."""
    started = time.perf_counter()
    yield
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    times.append((time.perf_counter() - started) * 1e6)


def measure_masks(vocab_size: int, num_steps: int, device: torch.device) -> None:
    with tempfile.TemporaryDirectory() as directory:
        write_vocabulary(Path(directory), vocab_size)
        source = TokenSource(directory=Path(directory), vocab_size=vocab_size, eos_token_ids=frozenset({EOS}))
        table = TokenTable(source)
    print(f"{vocab_size} tokens, no model, {num_steps} steps on {device}; medians (90 %) in microseconds a step")
    print(f"{'':12} {'rows':>5} {'make the masks':>20} {'apply them':>20} {'accept the tokens':>20}")
    for name, form in FORMS.items():
        grammar = Grammar(table.matcher(grammar_source(form.kind, form.text)), table)
        for num_rows in (1, 32, 256):
            times = mask_times(Answers(grammar, num_rows), num_rows, vocab_size, num_steps, device)
            columns = (f"{statistics.median(part):.0f} ({np.quantile(part, 0.9):.0f})" for part in times)
            print(f"{name:12} {num_rows:>5} " + " ".join(f"{column:>20}" for column in columns))


def mask_times(
    answers: Answers, num_rows: int, vocab_size: int, num_steps: int, device: torch.device
) -> tuple[list[float], list[float], list[float]]:
    """Of making, applying and accepting. The stub of a model says random logits, the same at every step."""
    making, applying, accepting = [], [], []
    said = torch.randn(num_rows, vocab_size, device=device)
    logits, dice = said.clone(), torch.Generator(device).manual_seed(0)
    for _ in range(num_steps):
        logits.copy_(said)
        with microseconds(making):
            masks = make_masks(answers.rows(), frozenset({EOS}))
        with microseconds(applying):
            apply_masks(logits, masks)
        noise = torch.rand(logits.shape, generator=dice, device=device)
        token_ids = (logits + 3 * noise).argmax(dim=-1).tolist()
        with microseconds(accepting):
            answers.go_on(token_ids)
    return making, applying, accepting


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--vocab", type=int, metavar="TOKENS", help="measure masks alone, for so large a vocabulary")
    parser.add_argument("--device", default="cpu", help="where --vocab keeps its logits")
    parser.add_argument("--requests", type=int, default=96, help="in line at the start of a round")
    parser.add_argument("--batch", type=int, default=32, help="answers at once")
    parser.add_argument("--tokens", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--threads", type=int, default=max(1, (os.cpu_count() or 2) // 2), help="of torch")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if options.vocab is None:
        compare_with_free_text(Load(options.requests, options.tokens, options.batch), options.rounds, options.threads)
    else:
        measure_masks(options.vocab, options.steps, torch.device(options.device))


if __name__ == "__main__":
    main()
