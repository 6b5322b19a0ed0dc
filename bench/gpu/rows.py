"""What happens between the products: norms, rotation, gates, their float8, sums over ranks, sampling."""

import torch
from torch import Tensor
from torch.nn import functional as F

from bench.gpu.bench import Bench
from bench.gpu.figures import OURS
from kvasir_kernels.float8.reference import Grain
from kvasir_kernels.one_shot_all_reduce.reference import NUM_PROGRAMS, PeerMemory, peer_memory_bytes
from kvasir_kernels.paged_cache import LayerCache
from kvasir_kernels.sample_tokens.reference import SamplingRules

_PAGE_SIZE = 16


def measure_rows(bench: Bench) -> None:
    model = bench.sizes.models[0]
    for num_tokens in bench.sizes.row_tokens:
        _measure_norm(bench, num_tokens, model.hidden_size)
        _measure_gate(bench, num_tokens, model.intermediate_size)
        _measure_rotation(bench, num_tokens)
    _measure_sum(bench, bench.sizes.row_tokens[0], model.hidden_size)
    _measure_sampling(bench, bench.sizes.row_tokens[0], model.vocab_size)


def _measure_norm(bench: Bench, num_tokens: int, size: int) -> None:
    from kvasir_kernels.rms_norm.kernel import add_rms_norm, add_rms_norm_float8

    x, residual, weight = bench.random(num_tokens, size), bench.random(num_tokens, size), bench.random(size)

    def torchs() -> tuple[Tensor, Tensor]:
        total = x + residual
        return F.rms_norm(total, (size,), weight, 1e-6), total

    case, numbers = f"{num_tokens} x {size}", num_tokens * size
    ours = {OURS: lambda: add_rms_norm(x, residual, weight, 1e-6), "torch": torchs}
    bench.measure("add, norm", case, ours, num_bytes=8 * numbers)
    narrow = {OURS: lambda: add_rms_norm_float8(x, residual, weight, 1e-6, Grain.ROW)}
    bench.measure("add, norm, to FP8", case, narrow, num_bytes=7 * numbers)


def _measure_gate(bench: Bench, num_tokens: int, width: int) -> None:
    from kvasir_kernels.silu_mul.kernel import silu_mul, silu_mul_float8

    gate_up = bench.random(num_tokens, 2 * width)
    case, numbers = f"{num_tokens} x {width}", num_tokens * width
    ways = {OURS: lambda: silu_mul(gate_up), "torch": lambda: F.silu(gate_up[:, :width]) * gate_up[:, width:]}
    bench.measure("silu, mul", case, ways, num_bytes=6 * numbers)
    for grain in Grain:
        narrow = {OURS: lambda grain=grain: silu_mul_float8(gate_up, grain)}
        bench.measure(f"silu, mul, FP8 {grain.value}", case, narrow, num_bytes=5 * numbers)


def _measure_rotation(bench: Bench, num_tokens: int) -> None:
    from kvasir_kernels.rotate_and_write.kernel import rotate_and_write

    num_heads, num_kv_heads, head_dim = bench.sizes.heads
    heads = bench.random(num_tokens, num_heads + 2 * num_kv_heads, head_dim)
    cos, sin = bench.random(2, num_tokens, head_dim // 2, dtype=torch.float32).unbind()
    shape = (2, -(-num_tokens // _PAGE_SIZE), _PAGE_SIZE, num_kv_heads, head_dim)
    cache, slots = LayerCache(*bench.random(*shape)), torch.arange(num_tokens, device=bench.device)
    numbers = num_tokens * (num_heads + 2 * num_kv_heads) * head_dim
    ways = {OURS: lambda: rotate_and_write(heads, None, cos, sin, slots, cache)}
    bench.measure("rotate, write", f"{num_tokens} tokens", ways, num_bytes=4 * numbers)


def _measure_sum(bench: Bench, num_tokens: int, size: int) -> None:
    """Of one rank: what a sum costs where nobody has to be waited for. A gang of several GPUs measures its own."""
    from kvasir_kernels.one_shot_all_reduce.kernel import one_shot_all_reduce

    own = torch.zeros(peer_memory_bytes(1), dtype=torch.uint8, device=bench.device)
    turns = torch.zeros(NUM_PROGRAMS, dtype=torch.int64, device=bench.device)
    memory = PeerMemory(0, torch.tensor([own.data_ptr()], device=bench.device), own, turns)
    values, room = bench.random(num_tokens, size), own[: num_tokens * size * 2].view(torch.bfloat16)
    ways = {
        OURS: lambda: one_shot_all_reduce(values, memory),
        "two copies": lambda: values.copy_(room.copy_(values.view(-1)).view_as(values)),
    }
    bench.measure("sum of one rank", f"{num_tokens} x {size}", ways, num_bytes=8 * num_tokens * size)


def _measure_sampling(bench: Bench, num_rows: int, width: int) -> None:
    from kvasir_kernels.sample_tokens.kernel import sample_tokens

    logits = 3 * bench.random(num_rows, width, dtype=torch.float32)
    for name, top_k, top_p in (("all", 2**31 - 1, torch.inf), ("top-k 50, top-p 0.9", 50, 0.9)):
        places = torch.arange(num_rows, device=bench.device)
        ones = torch.ones(num_rows, device=bench.device)
        top_ks = torch.full((num_rows,), top_k, dtype=torch.int32, device=bench.device)
        rules = SamplingRules(places, places, ones, top_ks, ones * top_p, ones * 0)
        ways = {
            OURS: lambda rules=rules: sample_tokens(logits, rules),
            "torch's sort": lambda: torch.softmax(logits.sort(-1, descending=True).values, -1).cumsum(-1),
        }
        bench.measure("sample", f"{num_rows} x {width}, {name}", ways, num_bytes=4 * num_rows * width)
