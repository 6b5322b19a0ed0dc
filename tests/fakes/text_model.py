"""A model directory with a small tokenizer of its own: enough for everything that a router reads."""

import json
from collections.abc import Mapping
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

SENTENCES = (
    "The quick brown fox jumps over the lazy dog. Pack my box with five dozen liquor jugs!",
    "Kvasir could answer any question put to him; the dwarfs brewed mead from his blood.",
    "Wörter mit Umlauten: äöüß, déjà vu, naïve façade, señor.",
    "你好，世界！今天天气很好，我们去公园散步吧。日本語のテキストもあります。",
    "Emoji: 😀 🎉 👩‍👩‍👧 🇳🇴 and more 😀😀 text.",
)

CHAT_TEMPLATE = (
    "{%- for message in messages %}"
    "{%- if message.role not in ['system', 'user', 'assistant'] %}"
    "{{- raise_exception('unknown role ' + message.role) }}"
    "{%- endif %}"
    "{{- '<|im_start|>' + message.role + '\n' + message.content + '<|im_end|>\n' }}"
    "{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|im_start|>assistant\n' }}{%- endif %}"
)

SPECIAL_TOKENS = ("<|im_start|>", "<|im_end|>", "<|endoftext|>")


def byte_level_tokenizer(num_tokens: int = 400) -> Tokenizer:
    """Ids 0 to 2 are SPECIAL_TOKENS."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=num_tokens,
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(SENTENCES, trainer)
    return tokenizer


def byte_fallback_tokenizer(num_tokens: int = 400) -> Tokenizer:
    """In the manner of Llama 2: words begin with U+2581, unknown characters are spelled in bytes."""
    tokenizer = Tokenizer(models.BPE(byte_fallback=True, fuse_unk=True, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    special_tokens = ["<unk>", *(f"<0x{byte:02X}>" for byte in range(256))]
    trainer = trainers.BpeTrainer(vocab_size=num_tokens, special_tokens=special_tokens, show_progress=False)
    tokenizer.train_from_iterator(SENTENCES[:2], trainer)
    # The trainer knows only "special" tokens to reserve; in a real model bytes are ordinary ones.
    document = json.loads(tokenizer.to_str())
    document["added_tokens"] = document["added_tokens"][:1]
    return Tokenizer.from_str(json.dumps(document))


def write_text_model(
    directory: Path,
    tokenizer: Tokenizer | None = None,
    *,
    config: Mapping[str, object] | None = None,
    generation_config: Mapping[str, object] | None = None,
    tokenizer_config: Mapping[str, object] | None = None,
) -> Path:
    """Write the files; the maps are added to (or replace) what is there."""
    directory.mkdir(parents=True, exist_ok=True)
    tokenizer = tokenizer or byte_level_tokenizer()
    tokenizer.save(str(directory / "tokenizer.json"))
    documents = {
        "config.json": {
            "vocab_size": tokenizer.get_vocab_size(),
            "max_position_embeddings": 2048,
            "eos_token_id": 2,
            **(config or {}),
        },
        "tokenizer_config.json": {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "bos_token": None,
            "eos_token": "<|im_end|>",
            "pad_token": {"__type": "AddedToken", "content": "<|endoftext|>", "special": True},
            "chat_template": CHAT_TEMPLATE,
            **(tokenizer_config or {}),
        },
        "generation_config.json": {"eos_token_id": [1, 2], **(generation_config or {})},
    }
    for name, document in documents.items():
        (directory / name).write_text(json.dumps(document), encoding="utf-8")
    return directory
