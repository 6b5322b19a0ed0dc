"""How near decoding and prefilling on a CPU come to what its memory and its arithmetic allow.

    python -m bench.cpu_path                             the sizes of the embedded demo model, float32
    python -m bench.cpu_path --shape qwen3-0.6b          1.2 GB of bfloat16, random
    python -m bench.cpu_path --quantization int8 int4    the same model in fewer bits beside the others, too
    python -m bench.cpu_path --threads 1 2               first with one thread, then with two

Three engines with the same random weights: one whose step is one call of the C++ kernels (native), one that calls them
operation by operation, and one on torch's operators alone, as on a machine without a compiler. They take turns, each
round anew, so that what else the machine does falls on all alike; times are CPU seconds of the process per thread. A
decode step must read all weights and the keys and values of its contexts, and must multiply each weight once per row;
the floor is the larger of the two times:

    bytes       over the bandwidth of a big read, measured in the same round
    operations  over the speed of a big matrix product in the model's dtype, measured in the same round

A model that fits into the processor's cache may come out above 100 %. The output is a table in Markdown, and above it
what was measured of the machine: the share of the bandwidth at one row, and of the product while prefilling, are the
two ratios to the physical limits.
"""

import argparse
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from statistics import median

import torch

from bench.figures import spread
from kvasir.demo import demo_model_path
from kvasir_kernels.native.choice import without_native_kernels
from kvasir_protocol.config import EngineConfig
from kvasir_protocol.ids import RequestId
from kvasir_protocol.request import GenerationRequest, SamplingParams
from kvasir_workers.engine import Engine
from kvasir_workers.load import LoadedModel, build_engine, page_layout
from kvasir_workers.model.checkpoint import read_config
from kvasir_workers.model.decoder import Decoder
from kvasir_workers.model.fusion import fuse
from kvasir_workers.model.spec import DecoderSpec, read_spec
from kvasir_workers.quantization.scheme import SCHEMES, QuantizationSpec
from kvasir_workers.request_check import EngineLimits

QWEN: dict[str, object] = {
    "architectures": ["Qwen3ForCausalLM"],
    "vocab_size": 151936,
    "hidden_size": 1024,
    "intermediate_size": 3072,
    "num_hidden_layers": 28,
    "num_attention_heads": 16,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "rms_norm_eps": 1e-6,
    "rope_theta": 1e6,
    "max_position_embeddings": 4096,
    "tie_word_embeddings": True,
    "dtype": "bfloat16",
}
PAGE_SIZE = 16
READ_BYTES, PRODUCT_SIZE = 2**28, 1024
CPU = torch.device("cpu")

_INTEGERS = tuple(name for name, scheme in SCHEMES.items() if scheme.float8 is None)


def read_shape(name: str) -> DecoderSpec:
    return read_spec(read_config(demo_model_path()) if name == "demo" else QWEN)


@dataclass(frozen=True, slots=True)
class Workload:
    """batch requests of num_prompt random tokens; then num_steps steps of one token each."""

    batch: int
    num_prompt: int
    num_steps: int

    @property
    def max_tokens(self) -> int:
        """Of an answer: those who decode first, while others are prefilled, must still be there when it is timed."""
        return self.num_steps + 2 * PAGE_SIZE

    def requests(self, vocab_size: int) -> Iterator[GenerationRequest]:
        draw = torch.Generator().manual_seed(0)
        sampling = SamplingParams(temperature=0, max_tokens=self.max_tokens, seed=0, ignore_eos=True)
        for number in range(self.batch):
            prompt = torch.randint(3, vocab_size, (self.num_prompt,), generator=draw).tolist()
            yield GenerationRequest(
                request_id=RequestId(str(number)), prompt_token_ids=tuple(prompt), sampling=sampling
            )


class Model:
    """Random weights, and the two numbers that bound it."""

    def __init__(self, spec: DecoderSpec, num_tokens: int, quantization: QuantizationSpec | None = None) -> None:
        self.spec, self.dtype = spec, getattr(torch, spec.dtype)
        decoder = Decoder(spec, self.dtype, CPU)
        for parameter in decoder.parameters():
            torch.nn.init.normal_(parameter, std=0.02)
        skipped = 0 if spec.tie_word_embeddings else decoder.embedding.weight.numel()
        self.num_weights = sum(parameter.numel() for parameter in decoder.parameters()) - skipped
        self._weight_bytes = self.num_weights * self.dtype.itemsize
        for matrix in decoder.matrices().values():
            if quantization is not None:
                self._weight_bytes -= matrix.num_saved_bytes(quantization)
            matrix.pack(quantization)
        fuse(decoder)
        self._fused = decoder.fused
        shape = (spec.num_layers, 2, num_tokens // PAGE_SIZE, PAGE_SIZE, spec.num_kv_heads, spec.head_dim)
        self._loaded = LoadedModel(
            decoder=decoder,
            pages=torch.zeros(shape, dtype=self.dtype),
            segment=None,
            layout=page_layout(spec, PAGE_SIZE, self.dtype, "random"),
            limits=EngineLimits(
                max_sequence_tokens=spec.max_position_embeddings,
                vocab_size=spec.vocab_size,
                eos_token_ids=frozenset(),
            ),
        )

    def engine(self, path: str) -> Engine:
        self._loaded.decoder.fused = None if path == "by-op" else self._fused
        config = EngineConfig(device="cpu", page_size=PAGE_SIZE, overlap=False, enable_prefix_caching=False)
        return build_engine(self._loaded, config)

    def num_bytes(self, num_context_tokens: int) -> int:
        """Of a step: weights, and keys and values of all contexts."""
        kept = 2 * self.spec.num_layers * self.spec.num_kv_heads * self.spec.head_dim
        return self._weight_bytes + int(self.dtype.itemsize * kept * num_context_tokens)

    def num_operations(self, num_tokens: int, num_sampled: int) -> int:
        """Of a step that computes so many tokens, and the logits of some."""
        head = self.spec.vocab_size * self.spec.hidden_size
        return 2 * ((self.num_weights - head) * num_tokens + head * num_sampled)


@dataclass(slots=True)
class Figures:
    """Of one path and one workload, a value per round."""

    step_s: list[float] = field(default_factory=list)
    floor_share: list[float] = field(default_factory=list)
    bandwidth_share: list[float] = field(default_factory=list)
    prefill_speed: list[float] = field(default_factory=list)
    prefill_share: list[float] = field(default_factory=list)


def seconds(work: Callable[[], object]) -> float:
    started = time.process_time()
    work()
    return (time.process_time() - started) / torch.get_num_threads()


def machine_speed(dtype: torch.dtype) -> tuple[float, float]:
    """Bytes read, and operations of a matrix product, per second: the best of three."""
    memory = torch.ones(READ_BYTES // 4)
    left, right = torch.randn(2, PRODUCT_SIZE, PRODUCT_SIZE).to(dtype).unbind()
    return (
        READ_BYTES / min(seconds(memory.sum) for _ in range(3)),
        2 * PRODUCT_SIZE**3 / min(seconds(lambda: left @ right) for _ in range(3)),
    )


def measure(model: Model, engine: Engine, workload: Workload, figures: Figures, speed: tuple[float, float]) -> None:
    bandwidth, arithmetic = speed
    for request in workload.requests(model.spec.vocab_size):
        engine.add(request)
    num_prompt_tokens = workload.batch * workload.num_prompt

    def prefill() -> None:
        while engine.counters().computed_prompt_tokens < num_prompt_tokens:
            engine.step()

    def decode() -> None:
        if len(engine.step()) != workload.batch:
            raise RuntimeError("a step that was timed had not all rows: give it fewer --steps or shorter prompts")

    prefill_s = seconds(prefill)
    times = [seconds(decode) for _ in range(workload.num_steps)]
    num_bytes = model.num_bytes(num_prompt_tokens + workload.batch * workload.num_steps // 2)
    step_s = median(times)
    figures.step_s.append(step_s)
    bytes_s, operations_s = num_bytes / bandwidth, model.num_operations(workload.batch, workload.batch) / arithmetic
    figures.floor_share.append(max(bytes_s, operations_s) / step_s)
    figures.bandwidth_share.append(bytes_s / step_s)
    figures.prefill_speed.append(num_prompt_tokens / prefill_s)
    figures.prefill_share.append(model.num_operations(num_prompt_tokens, workload.batch) / prefill_s / arithmetic)


COLUMNS = (
    "threads, rows", "path", "ms per step", "tokens/s", "% of the floor", "% of bandwidth", "prefill tokens/s",
    "% of product", "times of native's step",
)  # fmt: skip


def rows_of(threads: int, workload: Workload, figures: dict[str, Figures]) -> Iterator[str]:
    """Of the table, one for each path."""
    first = next(iter(figures.values())).step_s
    for path, values in figures.items():
        cells = [
            f"{threads}, {workload.batch}",
            path,
            spread([1e3 * value for value in values.step_s]),
            spread([workload.batch / value for value in values.step_s], 0),
            *(spread([100 * value for value in part], 0) for part in (values.floor_share, values.bandwidth_share)),
            spread(values.prefill_speed, 0),
            spread([100 * value for value in values.prefill_share], 0),
            spread([own / other for own, other in zip(values.step_s, first, strict=True)]),
        ]
        yield f"| {' | '.join(cells)} |"


def make_models(options: argparse.Namespace, spec: DecoderSpec) -> dict[str, Model]:
    """One for each path; two of them share their weights."""
    num_tokens = max(options.batches) * (options.prompt + options.steps + 2 * PAGE_SIZE)
    models = {"native": Model(spec, num_tokens)}
    if "by-op" in options.paths:
        models["by-op"] = models["native"]
    if "torch" in options.paths:
        with without_native_kernels():
            models["torch"] = Model(spec, num_tokens)
    return models | {name: Model(spec, num_tokens, SCHEMES[name]) for name in options.quantization}


def run_with(threads: int, models: dict[str, Model], options: argparse.Namespace) -> None:
    """Print the machine's limits and the table's rows for so many threads."""
    torch.set_num_threads(threads)
    speeds: list[tuple[float, float]] = []
    lines: list[str] = []
    for batch in options.batches:
        workload = Workload(batch, options.prompt, options.steps)
        figures = {path: Figures() for path in models}
        for _ in range(options.rounds):
            speeds.append(machine_speed(models["native"].dtype))
            for path, model in models.items():
                with without_native_kernels() if path == "torch" else nullcontext():
                    measure(model, model.engine(path), workload, figures[path], speeds[-1])
        lines += rows_of(threads, workload, figures)
    bandwidths, products = zip(*speeds, strict=True)
    dtype = str(models["native"].dtype).removeprefix("torch.")
    print(f"{threads} threads: a big read {spread([value / 1e9 for value in bandwidths], 1)} GB/s, ", end="")
    print(f"a product of {PRODUCT_SIZE} x {PRODUCT_SIZE} in {dtype} {spread([v / 1e9 for v in products], 0)} GFLOP/s\n")
    print(f"| {' | '.join(COLUMNS)} |\n|{'---|' * len(COLUMNS)}")
    print("\n".join(lines) + "\n")


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=["demo", "qwen3-0.6b"], default="demo")
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 8, 32])
    parser.add_argument("--prompt", type=int, default=128, help="tokens of each prompt")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, nargs="+", default=[1], help="of torch, one after the other")
    parser.add_argument(
        "--paths", nargs="*", choices=["by-op", "torch"], default=["by-op", "torch"], help="beside native"
    )
    parser.add_argument("--quantization", nargs="+", choices=_INTEGERS, default=[], help="each as one more path")
    options = parser.parse_args(arguments)
    spec = read_shape(options.shape)
    models = make_models(options, spec)
    print(
        f"{options.shape}, {spec.dtype}, prompts of {options.prompt}, {options.rounds} rounds; medians (all between)\n"
    )
    for threads in options.threads:
        run_with(threads, models, options)


if __name__ == "__main__":
    main()
