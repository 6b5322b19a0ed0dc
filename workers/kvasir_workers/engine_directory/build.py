"""From a checkpoint to an engine directory: each rank's weights in a file of their own, and what else a start needs."""

import fcntl
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

from kvasir_protocol.config import KvCacheDType, ModelConfig, QuantizationName
from kvasir_protocol.errors import ConfigError
from kvasir_workers.engine_directory.kernels import CPU, KernelTypes, compile_kernels, write_library
from kvasir_workers.engine_directory.manifest import (
    FORMAT,
    Manifest,
    RankFile,
    StoredDType,
    is_engine_directory,
    write_manifest,
)
from kvasir_workers.engine_directory.settings import settings_in
from kvasir_workers.engine_directory.tensor_file import write_tensors
from kvasir_workers.engine_directory.weights import expected_tensors, stored_tensors
from kvasir_workers.model.cache_scales import copy_cache_scales
from kvasir_workers.model.fingerprint import fingerprint, samples_of
from kvasir_workers.model.loader import load_spec
from kvasir_workers.parallel.mesh import GangShape, RankPlace
from kvasir_workers.parallel.shard import cut_model
from kvasir_workers.parallel.slices import load_shard
from kvasir_workers.quantization.scheme import QuantizationSpec
from kvasir_workers.resolve import resolve_quantization

_COPIED = ("*.json", "*.jinja", "*.model", "*.txt", "*.tiktoken", "LICENSE*")
"""Config, tokenizer, templates; weights, and the list of their files, are not."""

_INDEX_SUFFIX = ".index.json"


_DTYPE_NAMES: Mapping[torch.dtype, StoredDType] = {
    torch.float32: "float32",
    torch.bfloat16: "bfloat16",
    torch.float16: "float16",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class BuildOrder:
    """What to make of a checkpoint. device: "cpu", or the GPU to compile kernels for, with such a cache."""

    source: Path
    target: Path
    dtype: torch.dtype
    quantization: QuantizationName | None
    shape: GangShape
    device: str = CPU
    cache_dtype: KvCacheDType = "auto"

    def scheme(self) -> QuantizationSpec | None:
        """The one asked for, or the checkpoint's. Raises ConfigError where both are, or several ranks can't have it."""
        model = ModelConfig(path=str(self.source), served_name="", quantization=self.quantization)
        found = resolve_quantization(model, load_spec(self.source), torch.device("cpu"))
        if found is not None and found.float8 is None and self.shape.num_ranks > 1:
            raise ConfigError(f"quantization {found.name} is not supported with several ranks yet; leave it out")
        return found


def build_engine_directory(order: BuildOrder) -> Manifest:
    """Write the directory, which appears whole or not at all; one rank's weights are in memory at a time.

    Raises CheckpointError for what can't be read, ConfigError for what can't be built.
    """
    if is_engine_directory(order.source):
        raise ConfigError(f"{order.source} is an engine directory; build from the checkpoint that it was built from")
    spec, scheme = load_spec(order.source), order.scheme()
    for rank in range(order.shape.num_ranks):
        cut_model(spec, RankPlace(order.shape, rank))
    with _new_directory(order.target) as directory:
        _copy_texts(order.source, directory)
        (directory / "weights").mkdir()
        copy_cache_scales(order.source, spec, directory)
        compiled = None
        if order.device == CPU:
            write_library(directory)
        else:
            first = cut_model(spec, RankPlace(order.shape, 0))
            compiled = compile_kernels(
                directory, order.device, first, KernelTypes(order.dtype, scheme, order.cache_dtype)
            )
        manifest = Manifest(
            format=FORMAT,
            kvasir=_version(),
            source=str(order.source),
            fingerprint=fingerprint(order.source, scheme),
            dtype=_DTYPE_NAMES[order.dtype],
            quantization=order.quantization,
            unquantized=scheme.unquantized if scheme is not None else (),
            tensor_parallel_size=order.shape.tensor_parallel_size,
            pipeline_parallel_size=order.shape.pipeline_parallel_size,
            ranks=tuple(_write_rank(order, scheme, rank, directory) for rank in range(order.shape.num_ranks)),
            settings=settings_in(directory),
            compiled=compiled,
        )
        write_manifest(directory, manifest)
    return manifest


def _version() -> str:
    try:
        return version("kvasir")
    except PackageNotFoundError:  # a copy of the repository will do, too
        return "not installed"


def _write_rank(order: BuildOrder, scheme: QuantizationSpec | None, rank: int, directory: Path) -> RankFile:
    shard = cut_model(load_spec(order.source), RankPlace(order.shape, rank))
    # Integers are packed where they are made: here they are made as they are written.
    while_loading = scheme if scheme is not None and scheme.float8 is not None else None
    decoder = load_shard(order.source, order.dtype, torch.device("cpu"), shard, while_loading)
    sizes = expected_tensors(decoder, scheme)
    name = f"weights/rank-{rank}.safetensors"
    sha256 = write_tensors(directory / name, sizes, stored_tensors(decoder, scheme))
    return RankFile(
        file=name,
        weight_bytes=sum(size.num_bytes for size in sizes.values()),
        sha256=sha256,
        samples=samples_of(directory / name),
    )


def _copy_texts(source: Path, directory: Path) -> None:
    for pattern in _COPIED:
        for file in source.glob(pattern):
            if file.is_file() and not file.name.endswith(_INDEX_SUFFIX):
                shutil.copyfile(file, directory / file.name)


@contextmanager
def _new_directory(target: Path) -> Iterator[Path]:
    """A folder beside the target, which takes its name when all is there; what is left of a build that died goes.

    Raises ConfigError if something has the name already, or is being built under it, or files can't be written.
    """
    beside = target.with_name(f".{target.name}.building")
    with _sole_builder(target, beside):
        try:
            _empty(beside)
            yield beside
        except OSError as error:
            shutil.rmtree(beside, ignore_errors=True)
            raise _unwritten(target, error) from error
        except BaseException:
            shutil.rmtree(beside, ignore_errors=True)
            raise
        try:
            beside.rename(target)
        except OSError as error:  # whatever has the name now: what was built is whole, and took long
            raise ConfigError(
                f"{target} can't be given its name ({error}); all that was built is in {beside}: rename it yourself, "
                "before the next build under this name empties it"
            ) from error


@contextmanager
def _sole_builder(target: Path, beside: Path) -> Iterator[None]:
    """The folder beside the target is there, and no other process builds in it."""
    try:
        if target.exists():
            raise ConfigError(f"{target} is there already; remove it, or give another place with -o")
        beside.mkdir(parents=True, exist_ok=True)
        lock = os.open(beside, os.O_RDONLY | os.O_DIRECTORY)
    except OSError as error:
        raise _unwritten(target, error) from error
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    except BlockingIOError:
        raise ConfigError(f"{target} is being built by another process") from None
    finally:
        os.close(lock)


def _unwritten(target: Path, error: OSError) -> ConfigError:
    return ConfigError(f"{target} can't be written ({error})")


def _empty(directory: Path) -> None:
    for path in directory.iterdir():
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink()
