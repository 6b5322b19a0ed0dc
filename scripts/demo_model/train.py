"""Train Kvasir's embedded demo model from its corpus, on a CPU, and write it as a Hugging Face checkpoint.

Run from the root of the repository: python -m scripts.demo_model.train [--out kvasir/demo_model]
"""

import argparse
import ctypes
import json
import math
import time
from pathlib import Path
from random import Random

import torch
from safetensors.torch import save
from torch import Tensor
from torch.nn import functional
from transformers import LlamaConfig, LlamaForCausalLM

from scripts.demo_model.chat_tokenizer import VOCAB_SIZE, ChatTokenizer, build_tokenizer
from scripts.demo_model.conversations import Batch, ConversationSource, batches
from scripts.demo_model.questions import Corpus, load_corpus

_REPOSITORY = Path(__file__).parents[2]
_SEED = 1
_NUM_STEPS = 2600
_BATCH_TOKENS = 2048  # with padding
_PEAK_LEARNING_RATE = 1.5e-3
_WARMUP_STEPS = 150
_TOKENIZER_CONVERSATIONS = 20_000  # drawn for the tokenizer, so that it also sees varied case and mistakes
_PROGRESS_EVERY_STEPS = 50
_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_MAX, _M_ARENA_MAX = -1, -2, -4, -8  # glibc's malloc.h


def model_config(tokenizer: ChatTokenizer) -> dict[str, object]:
    """The content of config.json, in the classic form with rope_theta at top level."""
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": VOCAB_SIZE,
        "hidden_size": 256,
        "intermediate_size": 512,
        "num_hidden_layers": 6,
        "num_attention_heads": 8,
        "num_key_value_heads": 4,
        "head_dim": 32,
        "hidden_act": "silu",
        "max_position_embeddings": 2048,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "attention_bias": False,
        "mlp_bias": False,
        "attention_dropout": 0.0,
        "initializer_range": 0.02,
        "tie_word_embeddings": True,
        "bos_token_id": None,
        "eos_token_id": tokenizer.end_id,
        "pad_token_id": tokenizer.pad_id,
        "use_cache": True,
        "dtype": "float32",
    }


def tokenizer_texts(corpus: Corpus) -> list[str]:
    """The texts from which the tokenizer learns its merges."""
    source = ConversationSource(corpus, Random(_SEED))
    drawn = [source.draw() for _ in range(_TOKENIZER_CONVERSATIONS)]
    questions = [turn.question for conversation in drawn for turn in conversation.turns]
    # Answers and system prompts come back word for word, so a few times each is enough to find their words.
    fixed = [topic.answer for topic in corpus.topics] + list(corpus.follow_ups.answers.values())
    fixed += [corpus.off_topic.answer, corpus.follow_ups.unknown, corpus.follow_ups.no_context]
    fixed += [*corpus.phrasing.system_prompts, "system\n", "user\n", "assistant\n"]
    return questions + 20 * fixed


def collate(batch: Batch, pad_id: int) -> tuple[Tensor, Tensor]:
    """ids [B, T] padded on the right, and the loss weight [B, T] of predicting each of them."""
    ids = torch.full((len(batch.examples), batch.length), pad_id)
    weights = torch.zeros(len(batch.examples), batch.length)
    for row, example in enumerate(batch.examples):
        ids[row, : len(example.ids)] = torch.tensor(example.ids)
        weights[row, : len(example.ids)] = torch.tensor(example.weights)
    return ids, weights


def weighted_loss(model: LlamaForCausalLM, ids: Tensor, weights: Tensor) -> Tensor:
    """The mean loss over the tokens that count. Padding is on the right, so causal attention never sees it."""
    with torch.autocast("cpu", torch.bfloat16):
        logits = model(input_ids=ids, use_cache=False).logits
    losses = functional.cross_entropy(logits[:, :-1].flatten(0, 1).float(), ids[:, 1:].flatten(), reduction="none")
    kept = weights[:, 1:].flatten()
    return (losses * kept).sum() / kept.sum()


def learning_rate(step: int, num_steps: int) -> float:
    """Linear warm-up, then half a cosine down to zero."""
    if step < _WARMUP_STEPS:
        return _PEAK_LEARNING_RATE * (step + 1) / _WARMUP_STEPS
    progress = (step - _WARMUP_STEPS) / max(1, num_steps - _WARMUP_STEPS)
    return _PEAK_LEARNING_RATE * 0.5 * (1 + math.cos(math.pi * progress))


def train(corpus: Corpus, tokenizer: ChatTokenizer, num_steps: int) -> LlamaForCausalLM:
    """A trained model in float32. Prints a line of progress every few steps."""
    torch.manual_seed(_SEED)
    dice = Random(_SEED)
    # On a CPU plain attention is faster than the fused one at the lengths of most batches here.
    config = LlamaConfig.from_dict(model_config(tokenizer), attn_implementation="eager")
    model = LlamaForCausalLM(config)
    matrices = [p for p in model.parameters() if p.dim() > 1]
    scales = [p for p in model.parameters() if p.dim() == 1]
    optimizer = torch.optim.AdamW(
        [{"params": matrices, "weight_decay": 0.1}, {"params": scales, "weight_decay": 0.0}],
        betas=(0.9, 0.95),
        fused=True,
    )
    source = batches(ConversationSource(corpus, dice), tokenizer, _BATCH_TOKENS, dice)
    started_s, num_tokens = time.perf_counter(), 0
    for step in range(num_steps):
        ids, weights = collate(next(source), tokenizer.pad_id)
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, num_steps)
        loss = weighted_loss(model, ids, weights)
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        num_tokens += ids.numel()
        if (step + 1) % _PROGRESS_EVERY_STEPS == 0 or step + 1 == num_steps:
            elapsed_s = time.perf_counter() - started_s
            left_s = elapsed_s / (step + 1) * (num_steps - step - 1)
            print(
                f"step {step + 1}/{num_steps}  loss {loss.item():.4f}  {num_tokens / elapsed_s:,.0f} tokens/s  "
                f"{elapsed_s / 60:.1f} min, {left_s / 60:.1f} left",
                flush=True,
            )
    return model


def write_checkpoint(model: LlamaForCausalLM, tokenizer: ChatTokenizer, folder: Path) -> None:
    """Write the model with its weights rounded to bfloat16, its configuration and its tokenizer."""
    folder.mkdir(parents=True, exist_ok=True)
    weights = {
        name: tensor.to(torch.bfloat16).contiguous()
        for name, tensor in model.state_dict().items()
        if name != "lm_head.weight"  # tied to the embeddings
    }
    (folder / "model.safetensors").write_bytes(save(weights, metadata={"format": "pt"}))
    generation = {
        "do_sample": True,
        "temperature": 0.2,
        "top_p": 0.9,
        "eos_token_id": tokenizer.end_id,
        "pad_token_id": tokenizer.pad_id,
    }
    for name, content in (("config.json", model_config(tokenizer)), ("generation_config.json", generation)):
        (folder / name).write_text(json.dumps(content, indent=2) + "\n", "utf-8")
    tokenizer.save(folder)


def keep_freed_memory() -> None:
    """Let glibc keep what is freed: giving pages back and faulting them in again takes most of a step otherwise."""
    libc = ctypes.CDLL(None)
    if hasattr(libc, "mallopt"):
        for option, value in ((_M_MMAP_MAX, 0), (_M_TRIM_THRESHOLD, 2**31 - 1), (_M_TOP_PAD, 2**28), (_M_ARENA_MAX, 1)):
            libc.mallopt(option, value)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=_REPOSITORY / "kvasir" / "demo_model", help="folder to write to")
    parser.add_argument("--steps", type=int, default=_NUM_STEPS, help="optimizer steps (default %(default)s)")
    parser.add_argument("--threads", type=int, default=2, help="CPU threads (default %(default)s)")
    arguments = parser.parse_args()

    keep_freed_memory()
    torch.set_num_threads(arguments.threads)
    started_s = time.perf_counter()
    corpus = load_corpus()
    tokenizer = build_tokenizer(tokenizer_texts(corpus))
    print(f"{len(corpus.topics)} topics; tokenizer built in {time.perf_counter() - started_s:.0f} s", flush=True)
    model = train(corpus, tokenizer, arguments.steps)
    write_checkpoint(model, tokenizer, arguments.out)
    print(f"wrote {arguments.out} after {(time.perf_counter() - started_s) / 60:.1f} minutes in all")


if __name__ == "__main__":
    main()
