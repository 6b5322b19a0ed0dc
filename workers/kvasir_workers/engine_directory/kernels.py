"""The kernels in an engine directory: compiled when it is built, found when it is started.

    kernels/<hash>/...       Triton's, for one GPU and one version of Triton
    kernels/<hash>.so        the CPU's library, for one kind of processor
    tiles.json               which tiles Triton's were compiled with

They are programs. If anybody but the owner may write one of them, or a folder that they are in, all are left alone.
"""

import logging
import os
import stat
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from kvasir_kernels.dispatch import Grain
from kvasir_kernels.native.build import BuildError, built_library, install_library
from kvasir_protocol.config import EngineConfig, KvCacheDType
from kvasir_protocol.errors import CheckpointError, ConfigError
from kvasir_workers.engine_directory.manifest import Compiled, Manifest, build_command, read_manifest
from kvasir_workers.kv.manager import pages_for
from kvasir_workers.parallel.shard import ModelShard, layer_matrices
from kvasir_workers.quantization.scheme import QuantizationSpec
from kvasir_workers.resolve import resolve_cache_dtype
from kvasir_workers.runner.decode_graphs import graph_sizes

if TYPE_CHECKING:
    from kvasir_kernels.compile_model import ModelShape

_log = logging.getLogger(__name__)

CPU = "cpu"
KERNELS, TILES = "kernels", "tiles.json"

_OTHERS_WRITE = stat.S_IWGRP | stat.S_IWOTH


def target_here() -> str:
    """What a directory for this host is built for: its GPU's name, or "cpu"."""
    if not torch.cuda.is_available():
        return CPU
    import triton

    from kvasir_kernels.compile_targets import name_of

    return name_of(triton.runtime.driver.active.get_current_target())


def write_library(directory: Path) -> None:
    """The CPU's kernels, if they can be compiled here; else a start compiles them, or does without."""
    try:
        library = built_library()
    except BuildError as error:
        _log.warning("the engine directory gets no CPU kernels: %s", error)
        return
    (directory / KERNELS).mkdir()
    (directory / KERNELS / library.name).write_bytes(library.read_bytes())
    _close_to_others(directory / KERNELS)


@dataclass(frozen=True, slots=True)
class KernelTypes:
    """What kernels are compiled for beside sizes: the model's dtype, its quantization, what the cache holds."""

    dtype: torch.dtype
    scheme: QuantizationSpec | None
    cache_dtype: KvCacheDType


def compile_kernels(directory: Path, target: str, shard: ModelShard, types: KernelTypes) -> Compiled:
    """Triton's, for all that a rank computes. Raises ConfigError for an unknown target, or where there is no Triton."""
    try:
        import triton

        from kvasir_kernels.compile_targets import gpu_of

        gpu_of(target)
    except ImportError as error:
        raise ConfigError(f"kernels for {target} need Triton; install it: pip install triton") from error
    except ValueError as error:
        raise ConfigError(f"--target: {error}") from error
    _write_tiles(directory / TILES, target)
    tiles = ["--tiles", str(directory / TILES)] if (directory / TILES).is_file() else []
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"} | {
        "TRITON_CACHE_DIR": str(directory / KERNELS),
        "TRITON_STORE_BINARY_ONLY": "1",
        "PYTHONPATH": os.pathsep.join(path for path in sys.path if path),
    }
    shape = _shape(shard, types).to_json()
    command = [sys.executable, "-m", "kvasir_kernels.compile_model", target, shape, *tiles]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    if done.returncode:
        raise ConfigError(f"the kernels for {target} can't be compiled: {done.stderr.strip().rpartition(chr(10))[2]}")
    _close_to_others(directory / KERNELS)
    return Compiled(target=target, triton=triton.__version__)


def _shape(shard: ModelShard, types: KernelTypes) -> "ModelShape":
    from kvasir_kernels.compile_model import ModelShape

    engine = EngineConfig(kv_cache_dtype=types.cache_dtype)
    local, float8 = shard.local, types.scheme.float8 if types.scheme is not None else None
    return ModelShape(
        dtype=_named(types.dtype),
        stored=_named(resolve_cache_dtype(engine, types.dtype)),
        hidden_size=local.hidden_size,
        intermediate_size=local.intermediate_size,
        num_layers=local.num_layers,
        num_heads=local.num_heads,
        num_kv_heads=local.num_kv_heads,
        head_dim=local.head_dim,
        vocab_size=shard.whole.vocab_size,
        page_size=engine.page_size,
        windows=local.windows,
        has_head_norms=local.qk_norm,
        graph_rows=graph_sizes(engine.max_num_seqs),
        max_pages=pages_for(local.max_position_embeddings, engine.page_size),
        grain=None if float8 is None else "row" if float8.grain is Grain.ROW else "block",
        has_input_scale=float8 is not None and float8.has_input_scale,
        matrices=layer_matrices(shard, types.dtype) if float8 is not None else (),
    )


def _named(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _write_tiles(file: Path, target: str) -> None:
    """What was measured on the GPU that this is built for, if that is the one at hand. Raises ConfigError."""
    if target != target_here():
        return
    from kvasir_kernels.tuning.choices import choices_at, place_of
    from kvasir_kernels.tuning.table import TableError, write_table

    try:
        if choices := choices_at(place_of(torch.device("cuda", torch.cuda.current_device()))):
            write_table(file, choices)
    except TableError as error:
        raise ConfigError(str(error)) from error


def bring_kernels(directory: Path, device: torch.device) -> None:
    """Let this process find what an engine directory has for the device; other directories have nothing.

    Raises CheckpointError where its kernels are for another GPU or another Triton.
    """
    manifest = read_manifest(directory)
    if manifest is None or not (directory / KERNELS).is_dir():
        return
    if device.type == "cuda" and manifest.compiled is not None:
        _check(directory, manifest)
    if not _is_ours(directory / KERNELS):
        _log.warning("%s may be written by others: its kernels are not used, but compiled anew", directory / KERNELS)
    elif device.type == "cpu":
        install_library(directory / KERNELS)
    elif manifest.compiled is not None:
        from kvasir_kernels.prebuilt import use_prebuilt
        from kvasir_kernels.tuning.choices import prefer

        use_prebuilt(directory / KERNELS)
        prefer(directory / TILES)


def _check(directory: Path, manifest: Manifest) -> None:
    import triton

    here = Compiled(target=target_here(), triton=triton.__version__)
    if manifest.compiled != here:
        raise CheckpointError(
            f"{directory} has kernels for {manifest.compiled}, and this is {here}; build it anew here: "
            f"`{build_command(manifest, target=here.target)}`"
        )


def _close_to_others(folder: Path) -> None:
    """Nobody but the owner may write what is in it, whatever the umask lets groups do: a start would not use it."""
    for path in (folder, *folder.rglob("*")):
        path.chmod(stat.S_IMODE(path.stat().st_mode) & ~_OTHERS_WRITE)


def _is_ours(folder: Path) -> bool:
    """Whether nobody but this user and root can have written what is in it, or in folders in it."""
    found = [path.stat() for path in (folder, *folder.rglob("*"))]
    return all(each.st_uid in (0, os.geteuid()) and not each.st_mode & _OTHERS_WRITE for each in found)
