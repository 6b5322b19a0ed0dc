"""engine.json: what an engine directory was built for, and whether that is what is wanted now."""

import json
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Literal

from kvasir_protocol.config import ModelConfig, QuantizationName
from kvasir_protocol.config_tree import build
from kvasir_protocol.errors import CheckpointError, ConfigError
from kvasir_workers.parallel.mesh import GangShape

MANIFEST = "engine.json"

StoredDType = Literal["float32", "bfloat16", "float16"]

FORMAT = 2
"""Of the directory, counted up when an older version could not read what a newer one writes, or the other way round."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RankFile:
    """One rank's weights. weight_bytes: without the header; sha256: of the file; samples: of a few bytes of it."""

    file: str
    weight_bytes: int
    sha256: str
    samples: str


@dataclass(frozen=True, slots=True, kw_only=True)
class SettingsFile:
    """What decides beside the weights what comes of them."""

    file: str
    sha256: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Compiled:
    """Kernels in the directory: for which device (sm_90, gfx942), and by which version of Triton."""

    target: str
    triton: str

    def __str__(self) -> str:
        return f"{self.target} and Triton {self.triton}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """source: the checkpoint's path when this was built. fingerprint: the checkpoint's, with that quantization.

    ranks: by number. settings: all such files that there are. unquantized: the matrices that are wide in a checkpoint
    which was quantized already. compiled: None, if there are no kernels for a GPU.
    """

    format: int
    kvasir: str
    source: str
    fingerprint: str
    dtype: StoredDType
    tensor_parallel_size: int
    pipeline_parallel_size: int
    ranks: tuple[RankFile, ...]
    settings: tuple[SettingsFile, ...]
    quantization: QuantizationName | None = None
    unquantized: tuple[str, ...] = ()
    compiled: Compiled | None = None

    @property
    def shape(self) -> GangShape:
        return GangShape.of(self)


def is_engine_directory(directory: Path) -> bool:
    return (directory / MANIFEST).is_file()


def read_manifest(directory: Path) -> Manifest | None:
    """None for a directory that is no engine directory. Raises CheckpointError for one that this version can't read."""
    if not is_engine_directory(directory):
        return None
    try:
        tree = json.loads((directory / MANIFEST).read_text())
        if tree.get("format") != FORMAT:
            raise CheckpointError(
                f"{directory} is an engine directory of format {tree.get('format')}, this version reads {FORMAT}; "
                f"build it again: `kvasir build {tree.get('source')} -o DIR`"
            )
        manifest = build(Manifest, tree)
    except (OSError, ValueError, AttributeError, ConfigError) as error:
        raise CheckpointError(f"{directory / MANIFEST} is damaged ({error}); build the directory again") from error
    if len(manifest.ranks) != manifest.shape.num_ranks:
        raise CheckpointError(
            f"{directory / MANIFEST} names {len(manifest.ranks)} ranks for {manifest.shape}; build the directory "
            f"again: `{build_command(manifest, str(directory))}`"
        )
    return manifest


def write_manifest(directory: Path, manifest: Manifest) -> None:
    (directory / MANIFEST).write_text(json.dumps(asdict(manifest), indent=1) + "\n")


def settle(model: ModelConfig, shape: GangShape) -> ModelConfig:
    """The configuration with what an engine directory was built for in it; any other model's as it is.

    Raises ConfigError where something else is asked for, CheckpointError for a directory that can't be read.
    """
    directory = Path(model.path)
    manifest = read_manifest(directory)
    if manifest is None:
        return model
    dtype: StoredDType = manifest.dtype if model.dtype == "auto" else model.dtype
    wanted = replace(
        manifest,
        tensor_parallel_size=shape.tensor_parallel_size,
        pipeline_parallel_size=shape.pipeline_parallel_size,
        dtype=dtype,
        quantization=model.quantization or manifest.quantization,
    )
    if wanted != manifest:
        raise ConfigError(
            f"{directory} was built for {_described(manifest)}, and {_described(wanted)} is asked for; leave the "
            f"settings out to take what it was built for, or build a fitting one: `{build_command(wanted)}`"
        )
    return replace(model, dtype=manifest.dtype, quantization=manifest.quantization)


def shape_for(
    directory: Path, tensor_parallel_size: int | None = None, pipeline_parallel_size: int | None = None
) -> GangShape:
    """The sizes that were said; nothing said, those that an engine directory was built for, or one rank."""
    manifest = read_manifest(directory)
    if manifest is not None and tensor_parallel_size is None and pipeline_parallel_size is None:
        return manifest.shape
    return GangShape(tensor_parallel_size=tensor_parallel_size or 1, pipeline_parallel_size=pipeline_parallel_size or 1)


def build_command(wanted: Manifest, directory: str = "DIR", target: str | None = None) -> str:
    """What makes a directory like this one."""
    flags = {
        "--dtype": wanted.dtype,
        "--quantization": wanted.quantization,
        "--tensor-parallel-size": wanted.tensor_parallel_size if wanted.tensor_parallel_size > 1 else None,
        "--pipeline-parallel-size": wanted.pipeline_parallel_size if wanted.pipeline_parallel_size > 1 else None,
        "--target": target or (wanted.compiled.target if wanted.compiled else None),
    }
    said = "".join(f" {flag} {value}" for flag, value in flags.items() if value is not None)
    return f"kvasir build {wanted.source} -o {directory}{said}"


def _described(manifest: Manifest) -> str:
    weights = f", weights in {manifest.quantization}" if manifest.quantization else ""
    return f"{manifest.shape} in {manifest.dtype}{weights}"
