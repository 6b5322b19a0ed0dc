"""What is asked: a seed makes the same requests on every machine.

A workload is a list of conversations; most have one turn. Lengths are counted by whoever provides the words
(`text_source.py`).
"""

import math
import random
from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True, slots=True)
class Text:
    """num_tokens: None where nobody can count them."""

    text: str
    num_tokens: int | None


class TextSource(Protocol):
    """Makes text of a wanted length."""

    def write(self, draw: random.Random, num_tokens: int, after: str = "") -> Text:
        """Text to put behind `after`, with which it makes num_tokens more than `after` alone."""
        ...

    def count(self, text: str) -> int | None:
        """Of a prompt, with what the tokenizer puts in front; None where nobody can count."""
        ...

    def count_answer(self, text: str) -> int | None:
        """Of an answer, with nothing in front."""
        ...


@dataclass(frozen=True, slots=True)
class Turn:
    """What is said to the model, and the longest answer to it. num_tokens: of what is said alone, None if unknown."""

    text: str
    num_tokens: int | None
    max_tokens: int


@dataclass(frozen=True, slots=True)
class Conversation:
    """Every turn is sent with all before it, and their answers. at_s: when, where a trace says so."""

    turns: tuple[Turn, ...]
    at_s: float | None = None


def one_turn(prompt: Text, max_tokens: int, at_s: float | None = None) -> Conversation:
    """A prompt and its answer."""
    return Conversation((Turn(prompt.text, prompt.num_tokens, max_tokens),), at_s)


def joined(first: Text, second: Text) -> Text:
    """One behind the other; counted if both are."""
    known = first.num_tokens is not None and second.num_tokens is not None
    total = (first.num_tokens or 0) + (second.num_tokens or 0)
    return Text(first.text + second.text, total if known else None)


@dataclass(frozen=True, slots=True, kw_only=True)
class Lengths:
    """Tokens of a prompt and of its answer, each between length * (1 - range_ratio) and length * (1 + range_ratio)."""

    input_len: int
    output_len: int
    range_ratio: float = 0.0

    def draw(self, draw: random.Random) -> tuple[int, int]:
        return self._one(self.input_len, draw), self._one(self.output_len, draw)

    def _one(self, length: int, draw: random.Random) -> int:
        low, high = math.floor(length * (1 - self.range_ratio)), math.ceil(length * (1 + self.range_ratio))
        return draw.randint(max(1, low), max(1, high))


def random_prompts(
    num_prompts: int, lengths: Lengths, source: TextSource, seed: int, prefix_len: int = 0
) -> list[Conversation]:
    """Unrelated prompts, behind one common prefix if prefix_len is not 0."""
    draw = random.Random(seed)
    prefix = source.write(draw, prefix_len) if prefix_len else Text("", 0)
    conversations = []
    for _ in range(num_prompts):
        input_len, output_len = lengths.draw(draw)
        suffix = source.write(draw, input_len, prefix.text)
        conversations.append(one_turn(joined(prefix, suffix), output_len))
    return conversations


@dataclass(frozen=True, slots=True, kw_only=True)
class SharedPrefixes:
    """Tokens; each of num_prefixes is followed by equally many suffixes, no two of which are alike."""

    num_prefixes: int
    prefix_len: int
    suffix_len: int
    output_len: int


def prefix_repetition(num_prompts: int, shape: SharedPrefixes, source: TextSource, seed: int) -> list[Conversation]:
    """All prompts in a random order."""
    draw = random.Random(seed)
    prefixes = [source.write(draw, shape.prefix_len) for _ in range(shape.num_prefixes)]
    conversations = []
    for index in range(num_prompts):
        prefix = prefixes[index % len(prefixes)]
        suffix = source.write(draw, shape.suffix_len, prefix.text)
        conversations.append(one_turn(joined(prefix, suffix), shape.output_len))
    draw.shuffle(conversations)
    return conversations


def multi_turn(
    num_conversations: int, num_turns: int, lengths: Lengths, source: TextSource, seed: int
) -> list[Conversation]:
    """input_len is what each turn adds of its own."""
    draw = random.Random(seed)
    return [
        Conversation(tuple(_turn(source, lengths, draw) for _ in range(num_turns))) for _ in range(num_conversations)
    ]


def _turn(source: TextSource, lengths: Lengths, draw: random.Random) -> Turn:
    input_len, output_len = lengths.draw(draw)
    said = source.write(draw, input_len)
    return Turn(said.text, said.num_tokens, output_len)
