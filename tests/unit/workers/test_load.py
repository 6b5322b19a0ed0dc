"""From a checkpoint directory to an engine: names, refusals, and what is read."""

import json
import os
import resource
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from kvasir_protocol.config import EngineConfig, ModelConfig
from kvasir_protocol.errors import CheckpointError, ConfigError, OutOfMemory
from kvasir_workers.kv.page_memory import SHARED_MEMORY
from kvasir_workers.load import SegmentWish, build_engine, fingerprint, load_model
from kvasir_workers.resolve import resolve_device
from tests.checkpoints import make_checkpoint
from tests.unit.workers.fakes import make_request

TINY: dict[str, object] = {"num_hidden_layers": 1, "hidden_size": 16, "intermediate_size": 8, "vocab_size": 32}
NAME = f"kvasir-test-load-{os.getpid()}"
ENGINE = EngineConfig(device="cpu", page_size=4)
LARGE = EngineConfig(device="cpu", page_size=4, kv_cache_bytes=65 * 2**20)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_checkpoint(tmp_path_factory.mktemp("one"), "LlamaForCausalLM", **TINY)


def model(path: Path, **changes: object) -> ModelConfig:
    return ModelConfig(**{"path": str(path), "served_name": "m", **changes})  # type: ignore[arg-type]


@pytest.fixture
def copy(checkpoint: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(checkpoint, tmp_path / "copy"))


def edit_json(path: Path, **changes: object) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_copy_of_a_checkpoint_has_its_fingerprint(checkpoint: Path, copy: Path) -> None:
    assert fingerprint(copy) == fingerprint(checkpoint)


def test_other_weights_of_the_same_shape_have_another_fingerprint(checkpoint: Path, tmp_path: Path) -> None:
    other = make_checkpoint(tmp_path / "other", "LlamaForCausalLM", seed=1, **TINY)
    assert fingerprint(other) != fingerprint(checkpoint)


def test_one_trained_matrix_changes_the_fingerprint(checkpoint: Path, copy: Path) -> None:
    tensors = load_file(copy / "model.safetensors")
    tensors["model.layers.0.mlp.down_proj.weight"] += 0.01
    save_file(tensors, copy / "model.safetensors", metadata={"format": "pt"})
    assert fingerprint(copy) != fingerprint(checkpoint)


def test_other_config_changes_the_fingerprint(checkpoint: Path, copy: Path) -> None:
    edit_json(copy / "config.json", rms_norm_eps=1e-3)
    assert fingerprint(copy) != fingerprint(checkpoint)


def test_sharded_checkpoint_has_a_fingerprint(tmp_path: Path) -> None:
    sharded = make_checkpoint(tmp_path, "LlamaForCausalLM", max_shard_size="3KB", **TINY)
    assert len(list(sharded.glob("*.safetensors"))) > 1
    assert len(fingerprint(sharded)) == 16


def test_missing_directory_is_a_checkpoint_error(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no model directory"):
        load_model(model(tmp_path / "none"), ENGINE)


def test_pages_that_do_not_fit_are_refused_before_any_segment_is_made(checkpoint: Path) -> None:
    huge = EngineConfig(device="cpu", page_size=4, kv_cache_bytes=2**60)
    with pytest.raises(OutOfMemory):
        load_model(model(checkpoint), huge, SegmentWish(NAME, is_must=True))
    assert not (SHARED_MEMORY / NAME).exists()


def test_steps_that_do_not_fit_are_refused(checkpoint: Path) -> None:
    endless = EngineConfig(device="cpu", page_size=4, max_num_batched_tokens=2**60)
    with pytest.raises(OutOfMemory, match="tensors of a full step"):
        load_model(model(checkpoint), endless)


def test_bad_end_tokens_are_refused_and_leave_no_segment(copy: Path) -> None:
    edit_json(copy / "generation_config.json", eos_token_id="the end")
    with pytest.raises(CheckpointError, match="eos_token_id"):
        load_model(model(copy), ENGINE, SegmentWish(NAME, is_must=True))
    assert not (SHARED_MEMORY / NAME).exists()


def test_pages_lie_in_the_segment_that_was_named(checkpoint: Path) -> None:
    loaded = load_model(model(checkpoint), ENGINE, SegmentWish(NAME, is_must=True))
    assert loaded.segment is not None
    loaded.segment.remove()
    assert loaded.pages.data_ptr() == loaded.segment.tensor.data_ptr()


@pytest.fixture
def no_room_for_files() -> Iterator[None]:
    """As in a container with a small /dev/shm: no file may have more than 64 MiB (test logs are smaller)."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (64 * 2**20, hard))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.usefixtures("no_room_for_files")
def test_pages_are_private_where_shared_memory_has_no_room(checkpoint: Path) -> None:
    loaded = load_model(model(checkpoint), LARGE, SegmentWish(NAME, is_must=False))
    assert loaded.segment is None
    assert not (SHARED_MEMORY / NAME).exists()


@pytest.mark.usefixtures("no_room_for_files")
def test_shared_memory_that_was_demanded_but_has_no_room_is_an_error(checkpoint: Path) -> None:
    with pytest.raises(OutOfMemory, match="/dev/shm has no room"):
        load_model(model(checkpoint), LARGE, SegmentWish(NAME, is_must=True))


def test_layout_describes_the_pages(checkpoint: Path) -> None:
    loaded = load_model(model(checkpoint, dtype="bfloat16"), ENGINE)
    layout = loaded.layout
    num_pages = loaded.pages.shape[2]
    assert loaded.pages.shape == (layout.num_layers, 2, num_pages, 4, layout.num_kv_heads, layout.head_dim)
    assert (layout.dtype, loaded.pages.dtype) == ("bfloat16", torch.bfloat16)
    assert layout.model_fingerprint == fingerprint(checkpoint)


def test_dtype_is_the_checkpoints_unless_asked_otherwise(checkpoint: Path) -> None:
    assert load_model(model(checkpoint), ENGINE).pages.dtype == torch.float32
    assert load_model(model(checkpoint, dtype="float16"), ENGINE).pages.dtype == torch.float16


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device here")
def test_missing_cuda_is_a_config_error() -> None:
    with pytest.raises(ConfigError, match="finds no CUDA device; use --device cpu"):
        resolve_device(EngineConfig(device="cuda"))


def test_end_tokens_are_the_checkpoints(checkpoint: Path) -> None:
    assert load_model(model(checkpoint), ENGINE).limits.eos_token_ids == {2}


def test_end_token_that_the_model_cannot_say_is_left_out(copy: Path) -> None:
    (copy / "generation_config.json").write_text(json.dumps({"eos_token_id": [2, 32, 9999]}))
    assert load_model(model(copy), ENGINE).limits.eos_token_ids == {2}


def test_loaded_model_makes_an_engine_that_answers(checkpoint: Path) -> None:
    engine = build_engine(load_model(model(checkpoint), ENGINE), ENGINE)
    engine.add(make_request("r", [1, 2, 3], max_tokens=1))
    assert len([*engine.step(), *engine.step()][0].token_ids) == 1
