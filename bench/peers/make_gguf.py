"""A checkpoint of `make_models.py` as llama.cpp's GGUF, in bfloat16.

    python make_gguf.py MODEL_FOLDER OUT.gguf        needs gguf, safetensors, torch

llama.cpp's own converter refuses a tokenizer that it does not know by hash; this one needs to know only ours:
byte-level BPE with GPT-2's splitting.
"""

import json
import sys
from pathlib import Path

import gguf
import torch
from safetensors.torch import load_file

ARCHITECTURES = {"LlamaForCausalLM": gguf.MODEL_ARCH.LLAMA, "Qwen3ForCausalLM": gguf.MODEL_ARCH.QWEN3}
BF16, F32 = gguf.GGMLQuantizationType.BF16, gguf.GGMLQuantizationType.F32


def add_sizes(writer: gguf.GGUFWriter, config: dict) -> None:
    writer.add_vocab_size(config["vocab_size"])
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_key_length(config["head_dim"])
    writer.add_value_length(config["head_dim"])
    writer.add_rope_dimension_count(config["head_dim"])
    writer.add_rope_freq_base(config["rope_parameters"]["rope_theta"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])


def add_tokenizer(writer: gguf.GGUFWriter, model: Path) -> None:
    spec = json.loads((model / "tokenizer.json").read_text())
    added = {token["id"]: token["content"] for token in spec["added_tokens"]}
    texts = {index: text for text, index in spec["model"]["vocab"].items()} | added
    ids = {text: index for index, text in added.items()}
    kinds = [gguf.TokenType.CONTROL if index in added else gguf.TokenType.NORMAL for index in range(len(texts))]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list([texts[index] for index in range(len(texts))])
    writer.add_token_types(kinds)
    writer.add_token_merges([" ".join(merge) for merge in spec["model"]["merges"]])
    writer.add_eos_token_id(ids["<|im_end|>"])
    writer.add_pad_token_id(ids["<|endoftext|>"])
    writer.add_add_bos_token(False)
    writer.add_chat_template((model / "chat_template.jinja").read_text())


def interleaved(weight: torch.Tensor, num_heads: int) -> torch.Tensor:
    """llama.cpp's Llama rotates neighbouring pairs, Hugging Face's rotates halves."""
    halves = weight.reshape(num_heads, 2, -1, weight.shape[-1])
    return halves.transpose(1, 2).reshape(weight.shape)


def add_tensors(writer: gguf.GGUFWriter, model: Path, config: dict, architecture: gguf.MODEL_ARCH) -> None:
    names = gguf.get_tensor_name_map(architecture, config["num_hidden_layers"])
    num_heads = {"q_proj.weight": config["num_attention_heads"], "k_proj.weight": config["num_key_value_heads"]}
    for name, tensor in load_file(model / "model.safetensors").items():
        projection = ".".join(name.split(".")[-2:])
        if architecture == gguf.MODEL_ARCH.LLAMA and projection in num_heads:
            tensor = interleaved(tensor, num_heads[projection])
        values = tensor.float().numpy()
        kind = BF16 if values.ndim > 1 else F32
        writer.add_tensor(
            names.get_name(name, try_suffixes=(".weight",)), gguf.quants.quantize(values, kind), raw_dtype=kind
        )


def main(model: Path, out: str) -> None:
    config = json.loads((model / "config.json").read_text())
    architecture = ARCHITECTURES[config["architectures"][0]]
    writer = gguf.GGUFWriter(out, gguf.MODEL_ARCH_NAMES[architecture])
    writer.add_name(model.name)
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_BF16)
    add_sizes(writer, config)
    add_tokenizer(writer, model)
    add_tensors(writer, model, config, architecture)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
