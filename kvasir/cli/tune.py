"""`kvasir tune`: which tiles the kernels should take for a model on the GPU of this host."""

import argparse
from pathlib import Path

import torch
from rich.console import Console

from kvasir.cli.host import check_model
from kvasir_protocol.config import EngineConfig, ModelConfig, PoolConfig
from kvasir_protocol.errors import ConfigError
from kvasir_workers.engine_directory.manifest import settle, shape_for
from kvasir_workers.model.loader import load_spec
from kvasir_workers.parallel.mesh import GangShape, RankPlace
from kvasir_workers.parallel.shard import cut_model
from kvasir_workers.resolve import resolve_dtype, resolve_quantization


def show_tuning(options: argparse.Namespace) -> int:
    """Measure, and write what was found problem by problem. Raises KvasirError where there is nothing to measure on."""
    if not torch.cuda.is_available():
        raise ConfigError(
            "kvasir tune measures kernels on a GPU, and torch finds none on this host; run it where the model is to be "
            "served (CPUs have no tiles to choose)"
        )
    # Triton is no part of an installation for CPUs.
    from kvasir_kernels.tuning.choices import place_of
    from kvasir_kernels.tuning.clock import Clock
    from kvasir_kernels.tuning.search import TuningError, tune
    from kvasir_kernels.tuning.table import TableError, user_table, write_table
    from kvasir_workers.tuning import problems_of

    model, shape = wanted(options)
    spec = load_spec(Path(model.path))
    shard, device = cut_model(spec, RankPlace(shape, 0)), torch.device("cuda", torch.cuda.current_device())
    place, file, clock = place_of(device), options.output or user_table(), Clock(device)
    if file is None:
        raise ConfigError("this user has no home directory to keep choices in; give -o FILE, or set XDG_CACHE_HOME")
    console = Console(highlight=False, soft_wrap=True)
    console.print(f"{place.device}, Triton {place.triton}; choices go to {file}", markup=False)
    engine = EngineConfig(kv_cache_dtype=options.kv_cache_dtype)
    dtype, scheme = resolve_dtype(model, spec), resolve_quantization(model, spec, device)
    for problem in problems_of(shard, dtype, engine, device, scheme):
        try:
            choice, search = tune(problem, clock, place)
            write_table(file, [choice])
        except (TuningError, TableError, OSError) as error:
            raise ConfigError(str(error)) from error
        console.print(
            f"  {choice.key}: {1e6 * choice.seconds:,.1f} us, untuned {1e6 * choice.default_seconds:,.1f} us; "
            f"{len(search.seconds)} tiles measured, {len(search.refused)} refused",
            markup=False,
        )
    return 0


def wanted(options: argparse.Namespace) -> tuple[ModelConfig, GangShape]:
    """The model and its ranks as they were asked for, or as an engine directory was built. Raises KvasirError."""
    directory = Path(options.model).expanduser().absolute()
    shape = shape_for(directory, options.tensor_parallel_size)
    model = ModelConfig(path=str(directory), served_name="", dtype=options.dtype, quantization=options.quantization)
    pool = PoolConfig(
        role="mixed",
        tensor_parallel_size=shape.tensor_parallel_size,
        pipeline_parallel_size=shape.pipeline_parallel_size,
    )
    check_model(model, (pool,))
    return settle(model, shape), shape
