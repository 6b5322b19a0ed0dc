"""`kvasir build`: a model made ready, so that the next start has nothing to do but read."""

import argparse
import time
from pathlib import Path

from rich.console import Console

from kvasir.cli.host import check_model
from kvasir_protocol.config import ModelConfig, PoolConfig
from kvasir_protocol.errors import ConfigError
from kvasir_workers.engine_directory.build import BuildOrder, build_engine_directory
from kvasir_workers.engine_directory.kernels import target_here
from kvasir_workers.engine_directory.weights import open_engine_directory
from kvasir_workers.model.loader import load_spec
from kvasir_workers.parallel.mesh import GangShape
from kvasir_workers.resolve import resolve_dtype


def build(options: argparse.Namespace) -> int:
    """Write an engine directory, or read one through. Raises KvasirError."""
    console = Console(highlight=False, soft_wrap=True)
    if options.check:
        return _check(Path(options.model), console)
    if options.output is None:
        raise ConfigError("kvasir build needs -o DIR, the directory that it is to write")
    started_at = time.monotonic()
    order = _order(options)
    manifest = build_engine_directory(order)
    weights = sum(rank.weight_bytes for rank in manifest.ranks) / 2**20
    took = time.monotonic() - started_at
    console.print(
        f"{order.target}: {weights:,.0f} MiB of weights for {manifest.shape} in {took:.1f} s; "
        f"start it with `kvasir serve {order.target}`",
        markup=False,
    )
    return 0


def _order(options: argparse.Namespace) -> BuildOrder:
    shape = GangShape(
        tensor_parallel_size=options.tensor_parallel_size, pipeline_parallel_size=options.pipeline_parallel_size
    )
    source = Path(options.model).expanduser().absolute()
    model = ModelConfig(path=str(source), served_name="", dtype=options.dtype)
    pool = PoolConfig(
        role="mixed",
        tensor_parallel_size=shape.tensor_parallel_size,
        pipeline_parallel_size=shape.pipeline_parallel_size,
    )
    check_model(model, (pool,))
    return BuildOrder(
        source=source,
        target=options.output.expanduser().absolute(),
        dtype=resolve_dtype(model, load_spec(source)),
        quantization=options.quantization,
        shape=shape,
        device=options.target or target_here(),
        cache_dtype=options.kv_cache_dtype,
    )


def _check(directory: Path, console: Console) -> int:
    built = open_engine_directory(directory)
    if built is None:
        raise ConfigError(f"{directory} is no engine directory; `kvasir build MODEL -o DIR` makes one")
    built.check()
    console.print(f"{directory}: every byte of its weights is as it was built", markup=False)
    return 0
