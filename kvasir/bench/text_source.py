"""Words to fill prompts with, counted by a tokenizer if one is within reach."""

import random
from collections.abc import Callable, Iterable, Sequence
from functools import lru_cache
from pathlib import Path

from tokenizers import Tokenizer

from kvasir.bench.workloads import Text
from kvasir_protocol.errors import ConfigError

Count = Callable[[str], int]
"""Tokens of a text, as the server counts them: with what the tokenizer adds in front."""

ENGLISH = (
    "about", "after", "against", "all", "also", "an", "and", "are", "as", "at", "back", "be", "been", "best",
    "between", "book", "but", "by", "can", "city", "company", "day", "during", "early", "east", "end", "field",
    "film", "first", "for", "form", "found", "four", "from", "game", "great", "group", "had", "hand", "has", "have",
    "he", "her", "here", "high", "his", "home", "house", "in", "into", "is", "it", "its", "king", "known", "land",
    "later", "left", "life", "light", "line", "long", "made", "many", "may", "men", "more", "most", "music", "name",
    "national", "new", "north", "not", "number", "of", "old", "on", "one", "only", "or", "other", "out", "over",
    "own", "part", "people", "place", "point", "public", "right", "river", "road", "school", "season", "second",
    "service", "set", "she", "show", "since", "small", "some", "south", "state", "still", "such", "that", "the",
    "their", "then", "there", "they", "this", "three", "time", "to", "town", "two", "under", "united", "university",
    "up", "used", "war", "was", "water", "way", "were", "when", "where", "which", "who", "with", "work", "world",
    "would", "years",
)  # fmt: skip
"""Common words: in most vocabularies each is one token, with the space before it."""

MIN_WORDS = 16
MAX_WORDS = 4096

FILLERS = (" the", " a", "!", "?", " 7", " z", ";")
"""Tried one by one where whole words don't make the wanted number."""

MAX_CORRECTIONS = 32


class PlainWords:
    """Nobody counts: one word for each token."""

    def write(self, draw: random.Random, num_tokens: int, after: str = "") -> Text:
        del after
        return Text("".join(f" {word}" for word in draw.choices(ENGLISH, k=num_tokens)), None)

    def count(self, text: str) -> int | None:
        del text
        return None

    def count_answer(self, text: str) -> int | None:
        del text
        return None


class CountedWords:
    """Text of exactly as many tokens as asked for, if that can be; else as near as was found, and rightly counted."""

    def __init__(self, count_tokens: Count, candidates: Iterable[str] = ENGLISH) -> None:
        """candidates: words of which those are used that are one token behind another word."""
        # A common prefix is counted again for each prompt that it stands before.
        self._count = lru_cache(maxsize=64)(count_tokens)
        alone = count_tokens(" the")
        words = [word for word in dict.fromkeys(candidates) if count_tokens(f" the {word}") == alone + 1]
        self._words: Sequence[str] = words if len(words) >= MIN_WORDS else ENGLISH

    def count(self, text: str) -> int | None:
        return self._count(text)

    def count_answer(self, text: str) -> int | None:
        return self._count(text) - self._count("")

    def write(self, draw: random.Random, num_tokens: int, after: str = "") -> Text:
        base = self._count(after) if after else 0
        text = "".join(f" {word}" for word in draw.choices(self._words, k=num_tokens))
        num = self._count(after + text) - base
        for _ in range(MAX_CORRECTIONS):
            if num == num_tokens:
                break
            text = self._corrected(draw, text, num_tokens - num, after, base)
            num = self._count(after + text) - base
        return Text(text, num)

    def _corrected(self, draw: random.Random, text: str, num_missing: int, after: str, base: int) -> str:
        if num_missing < 0:
            words = text.split(" ")
            # A word has at least one token: so many may be too few to take away, never too many.
            per_word = max(1.0, (self._count(after + text) - base) / max(1, len(words) - 1))
            return " ".join(words[: max(1, len(words) - max(1, int(-num_missing / per_word)))])
        num = self._count(after + text)
        fitting = (filler for filler in FILLERS if self._count(after + text + filler) == num + 1)
        return text + next(fitting, f" {draw.choice(self._words)}")


def words_of_tokenizer(directory: Path) -> CountedWords:
    """Words that are one token each for the tokenizer of a model folder. Raises ConfigError."""
    path = directory / "tokenizer.json" if directory.is_dir() else directory
    try:
        tokenizer = Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises bare Exception
        raise ConfigError(f"--tokenizer {directory}: {error}; give a folder with a tokenizer.json") from error
    tokenizer.no_truncation()
    tokenizer.no_padding()
    pieces = (piece[1:] for piece in sorted(tokenizer.get_vocab()) if piece[:1] in ("\u0120", "\u2581"))
    words = [word for word in pieces if word.isascii() and word.isalpha()]
    return CountedWords(lambda text: len(tokenizer.encode(text).ids), words[:MAX_WORDS])
