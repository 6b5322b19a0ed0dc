"""What structured answers cost beside free text.

    python -m bench.structured_output                   the embedded demo model: tokens per second, by form
    python -m bench.structured_output --vocab 151936    no model: the microseconds of a step's masks, by rows

Each form has free text of its own to be compared with: answers of the same lengths, right before or after it, so that
what else the machine does falls on both alike. Tokens per second are of all tokens that were generated; CPU time is
the process's own, and feels the neighbours less.
"""

import argparse
import json
import os
import random
import statistics
import tempfile
import time
from collections.abc import Iterator, Sequence
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
EOS = 1
"""Of the vocabulary that is made up here."""

MAX_PIECES = 3


@dataclass(frozen=True, slots=True)
class Speed:
    """Tokens per second of wall time, and per second of the process's CPU time."""

    wall: float
    cpu: float


def answer(llm: LLM, form: StructuredOutput | None, lengths: list[int]) -> tuple[Speed, list[int]]:
    """How fast a batch was, and how many tokens its answers had: as many as asked for, unless the form ends before."""
    prompts = [f"A page of keys and values, number {i}:" for i in range(len(lengths))]
    params = [
        SamplingParams(
            seed=seed, max_tokens=length, structured_outputs=form, min_tokens=length, ignore_eos=form is None
        )
        for seed, length in enumerate(lengths)
    ]
    wall, cpu = time.perf_counter(), time.process_time()
    outputs = llm.generate(prompts, params, use_tqdm=False)
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    num_tokens = [len(choice.token_ids) for output in outputs for choice in output.outputs]
    return Speed(sum(num_tokens) / wall, sum(num_tokens) / cpu), num_tokens


def compare_with_free_text(batch_size: int, max_tokens: int, num_rounds: int, num_threads: int) -> None:
    pairs: dict[str, list[tuple[Speed, Speed]]] = {name: [] for name in FORMS}
    lengths: dict[str, list[int]] = {}
    with LLM(num_threads=num_threads) as llm:
        for name, form in FORMS.items():
            _, lengths[name] = answer(llm, form, [max_tokens] * batch_size)
            answer(llm, None, lengths[name])
        for index in range(num_rounds):
            for name, form in FORMS.items():
                kinds = [form, None] if index % 2 else [None, form]
                speeds = {kind is None: answer(llm, kind, lengths[name])[0] for kind in kinds}
                pairs[name].append((speeds[True], speeds[False]))
    print(f"demo model, {batch_size} answers of up to {max_tokens} tokens, {num_rounds} rounds; medians (quartiles)")
    print(f"{'':12} {'tokens':>7} {'free/s':>20} {'in the form/s':>20} {'loss':>20} {'loss of CPU time':>20}")
    for name, measured in pairs.items():
        free, formed = ([pair[place].wall for pair in measured] for place in (0, 1))
        losses = [[1 - getattr(b, kind) / getattr(a, kind) for a, b in measured] for kind in ("wall", "cpu")]
        columns = [spread(free, ".0f"), spread(formed, ".0f"), *(spread(loss, ".1%") for loss in losses)]
        print(f"{name:12} {sum(lengths[name]):>7} " + " ".join(f"{column:>20}" for column in columns))


def spread(values: list[float], kind: str) -> str:
    low, middle, high = statistics.quantiles(values, n=4)
    return f"{middle:{kind}} ({low:{kind}} to {high:{kind}})"


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


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--vocab", type=int, metavar="TOKENS", help="measure masks alone, for so large a vocabulary")
    parser.add_argument("--device", default="cpu", help="where --vocab keeps its logits")
    parser.add_argument("--batch", type=int, default=32, help="answers at once")
    parser.add_argument("--tokens", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--threads", type=int, default=max(1, (os.cpu_count() or 2) // 2), help="of torch")
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    if options.vocab is None:
        compare_with_free_text(options.batch, options.tokens, options.rounds, options.threads)
    else:
        measure_masks(options.vocab, options.steps, torch.device(options.device))


if __name__ == "__main__":
    main()
