"""The byte-level BPE tokenizer of the demo model, its chat format, and the files that describe both."""

import json
from collections.abc import Iterable
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

PAD_TOKEN = "<|endoftext|>"
START_TOKEN = "<|im_start|>"
END_TOKEN = "<|im_end|>"
VOCAB_SIZE = 2048
_NOISE_DROPOUT = 0.1  # share of merges left out in noisy encoding (Provilkov et al., 2020)

CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n"
    "{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


class ChatTokenizer:
    """Encodes the parts of a chat exactly as the chat template and tokenizer.json do together."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._noisy = Tokenizer.from_str(tokenizer.to_str())
        self._noisy.model.dropout = _NOISE_DROPOUT
        self.footer = self.encode(f"{END_TOKEN}\n")
        self.end_id = self.footer[0]
        self.pad_id = self.encode(PAD_TOKEN)[0]

    def encode(self, text: str, *, noisy: bool = False) -> list[int]:
        """The ids of a text. noisy: with random merges left out, another result each time."""
        tokenizer = self._noisy if noisy else self._tokenizer
        ids: list[int] = tokenizer.encode(text).ids
        return ids

    def header(self, role: str) -> list[int]:
        """The ids that open a message of this role."""
        return self.encode(f"{START_TOKEN}{role}\n")

    def save(self, folder: Path) -> None:
        """Write tokenizer.json and tokenizer_config.json as transformers reads them."""
        self._tokenizer.save(str(folder / "tokenizer.json"))
        config = {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "eos_token": END_TOKEN,
            "pad_token": PAD_TOKEN,
            "additional_special_tokens": [START_TOKEN],
            "add_bos_token": False,
            "clean_up_tokenization_spaces": False,
            "model_max_length": 2048,
            "chat_template": CHAT_TEMPLATE,
        }
        (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=2) + "\n", "utf-8")


def build_tokenizer(texts: Iterable[str]) -> ChatTokenizer:
    """A tokenizer of exactly VOCAB_SIZE tokens, learnt from the texts."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB_SIZE,
        special_tokens=[PAD_TOKEN, START_TOKEN, END_TOKEN],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    assert tokenizer.get_vocab_size() == VOCAB_SIZE, tokenizer.get_vocab_size()
    return ChatTokenizer(tokenizer)
