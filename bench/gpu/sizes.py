"""What is measured: the sizes of served models, or tiny ones to try the paths on a CPU."""

from dataclasses import dataclass, replace

# One sequence of a step: new tokens, and tokens visible at its end.
Lengths = tuple[int, int]


@dataclass(frozen=True, slots=True)
class ModelSize:
    """A decoder's sizes; the feed-forward layer is gated."""

    name: str
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    vocab_size: int
    tied: bool = False
    qk_norm: bool = False


LLAMA_8B = ModelSize("Llama-3.1-8B", 4096, 14336, 32, 32, 8, 128, 128256)
QWEN_06B = ModelSize("Qwen3-0.6B", 1024, 3072, 28, 16, 8, 128, 151936, tied=True, qk_norm=True)
# GPT-J's two matrices of 16384 have the weights of three of 10928, which is how many a gated layer has.
GPTJ_6B = ModelSize("GPT-J-6B, gated", 4096, 10928, 28, 16, 16, 256, 50400)


@dataclass(frozen=True, slots=True)
class Sizes:
    """heads: query heads, key heads, head size. linears: inputs and outputs of products."""

    models: tuple[ModelSize, ...]
    heads: tuple[int, int, int]
    decodes: dict[str, list[Lengths]]
    prefills: dict[str, list[Lengths]]
    linears: tuple[tuple[int, int], ...]
    linear_tokens: tuple[int, ...]
    row_tokens: tuple[int, ...]
    model_batches: tuple[int, ...]
    model_context: int
    copied_bytes: int
    product_size: int


FULL = Sizes(
    models=(LLAMA_8B, QWEN_06B, GPTJ_6B),
    heads=(32, 8, 128),
    decodes={
        "1 x 8k": [(1, 8192)],
        "8 x 8k": [(1, 8192)] * 8,
        "64 x 4k": [(1, 4096)] * 64,
        "1 x 64k + 31 x 2k": [(1, 65536), *[(1, 2048)] * 31],
    },
    prefills={"1 x 8k": [(8192, 8192)], "4 x 2k": [(2048, 2048)] * 4, "1k after 15k": [(1024, 16384)]},
    linears=((4096, 6144), (4096, 28672), (14336, 4096)),
    linear_tokens=(1, 8, 64, 1024),
    row_tokens=(64, 8192),
    model_batches=(1, 8, 64),
    model_context=512,
    copied_bytes=2**31,
    product_size=8192,
)

_TINY_MODEL = ModelSize("tiny", 64, 96, 2, 4, 2, 16, 200)

TINY = Sizes(
    models=(_TINY_MODEL, replace(_TINY_MODEL, name="tiny, tied", tied=True, qk_norm=True)),
    heads=(4, 2, 16),
    decodes={"2 x 40": [(1, 40)] * 2, "90 + 20": [(1, 90), (1, 20)]},
    prefills={"2 x 20": [(20, 20)] * 2, "5 after 15": [(5, 20)]},
    linears=((128, 144),),
    linear_tokens=(1, 17),
    row_tokens=(3,),
    model_batches=(1, 2),
    model_context=20,
    copied_bytes=2**16,
    product_size=64,
)
