"""Random checkpoints to compare servers on: a (Llama, 7 million parameters) and b (the sizes of Qwen3-0.6B), bfloat16.

    python make_models.py FOLDER        needs torch, transformers, tokenizers; nothing is downloaded

The tokenizer is a byte-level BPE trained on the standard library's sources, filled up so that every id is text. The row
of the end-of-sequence token in the output matrix is zero, so greedy answers never end early: its logit is 0, and the
highest of thousands of others is above 0. That makes answers of full length also with servers that know no ignore_eos.
"""

import json
import sys
import sysconfig
from collections.abc import Iterator
from itertools import product
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    GenerationConfig,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Qwen3Config,
    Qwen3ForCausalLM,
)

SEED = 0
SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
CHAT_TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def corpus(num_bytes: int) -> Iterator[str]:
    """The standard library's sources in a fixed order."""
    for path in sorted(Path(sysconfig.get_paths()["stdlib"]).rglob("*.py")):
        if num_bytes <= 0:
            return
        if "site-packages" not in path.parts:
            text = path.read_text(encoding="utf-8", errors="ignore")
            num_bytes -= len(text)
            yield text


def make_tokenizer(vocab_size: int, num_bytes: int) -> PreTrainedTokenizerFast:
    trained = Tokenizer(models.BPE())
    trained.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size - len(SPECIAL),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    trained.train_from_iterator(corpus(num_bytes), trainer)
    model = json.loads(trained.to_str())["model"]
    vocab, merges = fill_up(model["vocab"], [tuple(merge) for merge in model["merges"]], vocab_size - len(SPECIAL))
    full = Tokenizer(models.BPE(vocab=vocab, merges=merges))
    full.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    full.decoder = decoders.ByteLevel()
    full.add_special_tokens(SPECIAL)
    return PreTrainedTokenizerFast(
        tokenizer_object=full,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        chat_template=CHAT_TEMPLATE,
        clean_up_tokenization_spaces=False,
    )


def fill_up(
    vocab: dict[str, int], merges: list[tuple[str, str]], size: int
) -> tuple[dict[str, int], list[tuple[str, str]]]:
    """With joined words, where the corpus made too few."""
    vocab, merges = dict(vocab), list(merges)
    words = [token for token in sorted(vocab, key=lambda token: vocab[token]) if token.isascii() and token.isalpha()]
    for first, second in product(words, words):
        if len(vocab) >= size:
            break
        if first + second not in vocab:
            vocab[first + second] = len(vocab)
            merges.append((first, second))
    return vocab, merges


def make_a() -> PreTrainedModel:
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=4096,
            hidden_size=256,
            num_hidden_layers=6,
            num_attention_heads=8,
            num_key_value_heads=4,
            head_dim=32,
            intermediate_size=768,
            max_position_embeddings=4096,
            rms_norm_eps=1e-6,
            tie_word_embeddings=False,
        )
    )


def make_b() -> PreTrainedModel:
    return Qwen3ForCausalLM(
        Qwen3Config(
            vocab_size=151936,
            hidden_size=1024,
            num_hidden_layers=28,
            num_attention_heads=16,
            num_key_value_heads=8,
            head_dim=128,
            intermediate_size=3072,
            max_position_embeddings=40960,
            rms_norm_eps=1e-6,
            rope_parameters={"rope_type": "default", "rope_theta": 1_000_000.0},
            tie_word_embeddings=True,
        )
    )


RECIPES = {"a": (make_a, 4_000_000), "b": (make_b, 40_000_000)}


def write(name: str, folder: Path) -> None:
    recipe, num_corpus_bytes = RECIPES[name]
    torch.manual_seed(SEED)
    model = recipe()
    tokenizer = make_tokenizer(model.config.vocab_size, num_corpus_bytes)
    model.config.bos_token_id = None
    model.config.eos_token_id, model.config.pad_token_id = tokenizer.eos_token_id, tokenizer.pad_token_id
    with torch.no_grad():
        for token in SPECIAL:
            model.lm_head.weight[tokenizer.convert_tokens_to_ids(token)] = 0
    model.generation_config = GenerationConfig(
        eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id, do_sample=False
    )
    model.to(torch.bfloat16).save_pretrained(folder / name)
    tokenizer.save_pretrained(folder / name)
    print(f"{folder / name}: {sum(p.numel() for p in model.parameters()):,} parameters")


if __name__ == "__main__":
    for name in sys.argv[2:] or RECIPES:
        write(name, Path(sys.argv[1]))
