"""Measure the GPU kernels in one go, under nine minutes: `python -m bench.gpu --out FOLDER`.

Needs torch, triton, and what the model code imports (safetensors, msgpack); no server. Run it from the root with
PYTHONPATH=.:protocol:kernels:workers where Kvasir is not installed. The table comes last; FOLDER gets gpu.json with
every figure, also of the ways that the table leaves out. `--tiny` tries every path on a CPU, in Triton's interpreter:
set TRITON_INTERPRET=1.
"""

import argparse
import platform
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import torch

from bench.gpu.attention import measure_attention
from bench.gpu.bench import Bench
from bench.gpu.ceilings import measure_ceilings
from bench.gpu.figures import rows, save
from bench.gpu.models import measure_models
from bench.gpu.products import measure_products
from bench.gpu.rows import measure_rows
from bench.gpu.sizes import FULL, TINY

PARTS = {
    "rows": measure_rows,
    "models": measure_models,
    "products": measure_products,
    "attention": measure_attention,
}


def about(device: torch.device, command: Sequence[str]) -> dict[str, str]:
    import triton

    name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor()
    return {
        "device": name,
        "torch": torch.__version__,
        "triton": triton.__version__,
        "cuda": str(torch.version.cuda),
        "command": " ".join(["python -m bench.gpu", *command]),
    }


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m bench.gpu", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True, metavar="FOLDER", help="gets gpu.json")
    parser.add_argument("--parts", nargs="+", choices=list(PARTS), default=list(PARTS))
    parser.add_argument("--minutes", type=float, default=8.0, help="after which nothing more is begun")
    parser.add_argument("--tiny", action="store_true", help="tiny sizes, on the CPU")
    options = parser.parse_args(arguments)
    if not options.tiny and not torch.cuda.is_available():
        sys.exit("bench.gpu: error: torch sees no CUDA device; --tiny tries the paths without one")
    device = torch.device("cpu" if options.tiny else "cuda")
    torch.manual_seed(0)
    bench = Bench(device, TINY if options.tiny else FULL, time.monotonic() + 60 * options.minutes)
    ceilings = measure_ceilings(bench)
    for part in options.parts:
        print(f"measuring {part}", file=sys.stderr)
        PARTS[part](bench)
    described = about(device, sys.argv[1:] if arguments is None else arguments)
    path = save(options.out, described, ceilings, bench.figures)
    print(", ".join(f"{key} {value}" for key, value in described.items()))
    print(
        f"ceilings: copy {ceilings.copy / 1e9:.0f} GB/s, "
        f"bfloat16 {ceilings.bfloat16 / 1e12:.0f} TFLOP/s, FP8 {ceilings.float8 / 1e12:.0f} TFLOP/s; all: {path}"
    )
    print("\n".join(rows(bench.figures, ceilings)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
