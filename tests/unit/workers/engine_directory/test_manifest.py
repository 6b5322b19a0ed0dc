"""What an engine directory was built for, and what is said to those who want something else."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from kvasir_protocol.config import ModelConfig
from kvasir_protocol.errors import CheckpointError, ConfigError
from kvasir_workers.engine_directory.manifest import (
    FORMAT,
    Manifest,
    RankFile,
    read_manifest,
    settle,
    shape_for,
    write_manifest,
)
from kvasir_workers.parallel.mesh import GangShape

RANK = RankFile(file="weights/rank-0.safetensors", weight_bytes=100, sha256="ab", samples="cd")
MANIFEST = Manifest(
    format=FORMAT,
    kvasir="0.1.0",
    source="/models/llama",
    fingerprint="0123",
    dtype="bfloat16",
    quantization=None,
    tensor_parallel_size=2,
    pipeline_parallel_size=1,
    ranks=(RANK, RANK),
    settings=(),
)
TWO = GangShape(tensor_parallel_size=2)


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    write_manifest(tmp_path, MANIFEST)
    return tmp_path


def model(directory: Path, **settings: object) -> ModelConfig:
    return ModelConfig(path=str(directory), served_name="m", **settings)  # type: ignore[arg-type]


def edit(directory: Path, **changes: object) -> None:
    file = directory / "engine.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def test_what_was_written_is_read(directory: Path) -> None:
    assert read_manifest(directory) == MANIFEST


def test_a_checkpoint_has_no_manifest_and_stays_as_it_is(tmp_path: Path) -> None:
    assert read_manifest(tmp_path) is None
    assert settle(model(tmp_path), TWO) == model(tmp_path)
    assert shape_for(tmp_path) == GangShape()


def test_what_nobody_asked_for_is_as_it_was_built(directory: Path) -> None:
    write_manifest(directory, replace(MANIFEST, quantization="int8"))
    assert settle(model(directory), TWO) == model(directory, dtype="bfloat16", quantization="int8")
    assert shape_for(directory) == TWO


def test_what_was_built_may_be_asked_for(directory: Path) -> None:
    assert settle(model(directory, dtype="bfloat16"), shape_for(directory, 2, 1)).dtype == "bfloat16"


@pytest.mark.parametrize(
    ("settings", "shape", "flags"),
    [
        ({}, GangShape(), "--dtype bfloat16"),
        ({"dtype": "float32"}, TWO, "--dtype float32 --tensor-parallel-size 2"),
        ({"quantization": "int8"}, TWO, "--dtype bfloat16 --quantization int8 --tensor-parallel-size 2"),
        (
            {},
            GangShape(tensor_parallel_size=2, pipeline_parallel_size=3),
            "--dtype bfloat16 --tensor-parallel-size 2 --pipeline-parallel-size 3",
        ),
    ],
)
def test_a_misfit_is_refused_with_the_command_that_makes_what_fits(
    directory: Path, settings: dict[str, object], shape: GangShape, flags: str
) -> None:
    with pytest.raises(ConfigError) as refusal:
        settle(model(directory, **settings), shape)
    assert f"was built for tp=2 pp=1 in bfloat16, and {shape}" in str(refusal.value)
    assert f"`kvasir build /models/llama -o DIR {flags}`" in str(refusal.value)


def test_another_format_is_refused_with_the_command_that_makes_this_one(directory: Path) -> None:
    edit(directory, format=FORMAT + 1, new_field=3)
    with pytest.raises(
        CheckpointError,
        match=rf"format {FORMAT + 1}, this version reads {FORMAT}; .*`kvasir build /models/llama -o DIR`",
    ):
        read_manifest(directory)


@pytest.mark.parametrize(
    "changes", [{"ranks": 3}, {"ranks": [{}]}, {"dtype": "int3"}, {"tensor_parallel_size": "2"}, {"surprise": 1}]
)
def test_a_damaged_manifest_is_said_to_be_damaged(directory: Path, changes: dict[str, object]) -> None:
    edit(directory, **changes)
    with pytest.raises(CheckpointError, match=r"engine\.json is damaged"):
        read_manifest(directory)


@pytest.mark.parametrize("text", ["", "[]", "{"])
def test_a_manifest_that_is_no_object_is_said_to_be_damaged(directory: Path, text: str) -> None:
    (directory / "engine.json").write_text(text)
    with pytest.raises(CheckpointError, match="damaged"):
        read_manifest(directory)


def test_a_rank_that_is_missing_from_the_manifest_is_said(directory: Path) -> None:
    edit(directory, tensor_parallel_size=4)
    with pytest.raises(CheckpointError, match="names 2 ranks for tp=4 pp=1; build the directory again: `kvasir build"):
        read_manifest(directory)
