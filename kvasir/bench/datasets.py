"""Workloads out of recorded conversations and traces."""

import random
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from kvasir.bench.workloads import Conversation, Text, TextSource, joined, one_turn
from kvasir_protocol.errors import ConfigError

TRACE_BLOCK_TOKENS = 512
"""Tokens for which one of Mooncake's hash ids stands (their FAST'25 traces)."""

MIN_SHAREGPT_TOKENS, MAX_SHAREGPT_PROMPT, MAX_SHAREGPT_TOKENS = 4, 1024, 2048
"""What vLLM's benchmark keeps of ShareGPT: nothing shorter, no longer prompt, no more in all."""


def sharegpt(
    entries: Sequence[Mapping[str, Any]], num_prompts: int, source: TextSource, seed: int, output_len: int | None = None
) -> list[Conversation]:
    """The first question of each conversation; output_len instead of the length of the answer that it had.

    Too short and too long ones are left out, as vLLM does; too few are repeated. Raises ConfigError.
    """
    order = list(entries)
    random.Random(seed).shuffle(order)
    kept: list[Conversation] = []
    for entry in order:
        if len(kept) == num_prompts:
            return kept
        if (conversation := _question(entry, source, output_len)) is not None:
            kept.append(conversation)
    if not kept:
        raise ConfigError("the ShareGPT file holds no conversation of a usable length")
    return [kept[index % len(kept)] for index in range(num_prompts)]


def _question(entry: Mapping[str, Any], source: TextSource, output_len: int | None) -> Conversation | None:
    said = entry.get("conversations") or entry.get("conversation") or []
    if len(said) < 2:
        return None
    try:
        question, answer = str(said[0]["value"]), str(said[1]["value"])
    except (KeyError, TypeError) as error:
        raise ConfigError('a conversation of the ShareGPT file has no [{"value": …}, …]') from error
    num_prompt, num_answer = source.count(question), source.count_answer(answer)
    prompt_words, answer_words = num_prompt or len(question.split()), num_answer or len(answer.split())
    max_tokens = output_len or answer_words
    is_short = prompt_words < MIN_SHAREGPT_TOKENS or (output_len is None and max_tokens < MIN_SHAREGPT_TOKENS)
    if is_short or prompt_words > MAX_SHAREGPT_PROMPT or prompt_words + max_tokens > MAX_SHAREGPT_TOKENS:
        return None
    return one_turn(Text(question, num_prompt), max_tokens)


@dataclass(frozen=True, slots=True)
class TraceLine:
    """timestamp_ms: from the start. hash_ids: one for each 512 tokens of the prompt; equal ids, equal text."""

    timestamp_ms: float
    input_length: int
    output_length: int
    hash_ids: tuple[int, ...]


def mooncake(lines: Iterable[TraceLine], source: TextSource, seed: int, speed: float = 1.0) -> list[Conversation]:
    """The trace's prompts at its times, `speed` times as fast; what two prompts share there, they share here."""
    blocks: dict[tuple[str, int], Text] = {}
    return [
        one_turn(
            _prompt_of(line, f"{seed}/{index}", source, seed, blocks),
            max(1, line.output_length),
            line.timestamp_ms / 1000 / speed,
        )
        for index, line in enumerate(lines)
    ]


def _prompt_of(line: TraceLine, name: str, source: TextSource, seed: int, blocks: dict[tuple[str, int], Text]) -> Text:
    """name: tells this line's text, where it has no hash id, from all other."""
    prompt = Text("", 0)
    num_blocks = -(-line.input_length // TRACE_BLOCK_TOKENS)
    names = [f"{seed}/{hash_id}" for hash_id in line.hash_ids[:num_blocks]]
    names += [f"{name}/{index}" for index in range(len(names), num_blocks)]
    for index, block in enumerate(names):
        size = min(TRACE_BLOCK_TOKENS, line.input_length - index * TRACE_BLOCK_TOKENS)
        if (block, size) not in blocks:
            # The first block is at the start of a text, where a tokenizer may add a token of its own.
            blocks[block, size] = source.write(random.Random(block), size, "" if index == 0 else " the")
        prompt = joined(prompt, blocks[block, size])
    return prompt
