"""Loading weights: every tensor in its place, sizes known beforehand, and what is said about broken files."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from kvasir_protocol.errors import CheckpointError
from kvasir_workers.model.decoder import Decoder
from kvasir_workers.model.loader import load_decoder, load_spec, weight_bytes
from kvasir_workers.model.weight_map import weight_map
from tests.checkpoints import make_checkpoint

CPU = torch.device("cpu")
FAMILIES = ["LlamaForCausalLM", "Qwen2ForCausalLM", "Qwen3ForCausalLM", "MistralForCausalLM"]
Q_PROJ = "model.layers.0.self_attn.q_proj.weight"


@pytest.fixture(scope="module")
def pristine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_checkpoint(tmp_path_factory.mktemp("pristine"), "LlamaForCausalLM")


@pytest.fixture
def checkpoint(pristine: Path, tmp_path: Path) -> Path:
    """A copy to break."""
    return Path(shutil.copytree(pristine, tmp_path / "checkpoint"))


@pytest.fixture
def sharded(tmp_path: Path) -> Path:
    return make_checkpoint(tmp_path / "sharded", "LlamaForCausalLM", max_shard_size="100KB")


def _edit_tensors(directory: Path, edit: Callable[[dict[str, Tensor]], object]) -> None:
    tensors = load_file(directory / "model.safetensors")
    edit(tensors)
    save_file(tensors, directory / "model.safetensors")


def _edit_json(file: Path, **changes: object) -> None:
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def _refusal(directory: Path) -> str:
    with pytest.raises(CheckpointError) as caught:
        load_decoder(directory, torch.float32, CPU)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("tied", [False, True])
def test_weight_map_fills_every_row_of_every_parameter_once(family: str, tied: bool, tmp_path: Path) -> None:
    # Families without such a bias ignore the key.
    spec = load_spec(make_checkpoint(tmp_path, family, tie_word_embeddings=tied, attention_bias=True))
    filled: dict[str, list[int]] = {}
    for place in weight_map(spec).values():
        filled.setdefault(place.parameter, []).extend(range(place.start, place.start + place.num_rows))
    skeleton = Decoder(spec, torch.float32, torch.device("meta"))
    expected = {name: list(range(len(parameter))) for name, parameter in skeleton.named_parameters()}
    assert {name: sorted(rows) for name, rows in filled.items()} == expected


def test_sharded_weights_are_those_of_the_single_file(checkpoint: Path, sharded: Path) -> None:
    assert len(list(sharded.glob("*.safetensors"))) > 2
    one, many = (load_decoder(path, torch.float32, CPU).state_dict() for path in (checkpoint, sharded))
    assert one.keys() == many.keys()
    assert all(torch.equal(one[name], many[name]) for name in one)


def test_weights_are_cast_and_rotary_tables_are_not(checkpoint: Path) -> None:
    decoder = load_decoder(checkpoint, torch.bfloat16, CPU)
    assert {parameter.dtype for parameter in decoder.parameters()} == {torch.bfloat16}
    assert {angles.dtype for angles in decoder.rotary.at(torch.tensor([0]))} == {torch.float32}


@pytest.mark.parametrize("tied", [False, True])
def test_sizes_are_known_before_loading(tied: bool, tmp_path: Path) -> None:
    path = make_checkpoint(tmp_path, "Qwen3ForCausalLM", tie_word_embeddings=tied)
    decoder = load_decoder(path, torch.bfloat16, CPU)
    assert weight_bytes(path, torch.bfloat16) == sum(parameter.nbytes for parameter in decoder.parameters())


def test_tensors_that_repeat_others_are_ignored(tmp_path: Path) -> None:
    path = make_checkpoint(tmp_path, "LlamaForCausalLM", tie_word_embeddings=True)
    size = weight_bytes(path, torch.float32)

    def add(tensors: dict[str, Tensor]) -> None:
        tensors["lm_head.weight"] = torch.zeros(256, 64)
        tensors["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.zeros(8)

    _edit_tensors(path, add)
    assert weight_bytes(path, torch.float32) == size
    assert load_decoder(path, torch.float32, CPU).spec.tie_word_embeddings


def test_missing_directory_is_named(tmp_path: Path) -> None:
    assert f"no model directory at {tmp_path / 'nowhere'}" in _refusal(tmp_path / "nowhere")


def test_missing_config_is_named(checkpoint: Path) -> None:
    (checkpoint / "config.json").unlink()
    assert f"{checkpoint} has no config.json" in _refusal(checkpoint)


@pytest.mark.parametrize("content", [b"{", b"\xff\xfe", b"[" * 100_000, b"[]", b""])
def test_config_that_is_no_json_object_is_named(checkpoint: Path, content: bytes) -> None:
    (checkpoint / "config.json").write_bytes(content)
    assert str(checkpoint / "config.json") in _refusal(checkpoint)


def test_missing_weights_say_what_is_read(checkpoint: Path) -> None:
    (checkpoint / "model.safetensors").rename(checkpoint / "pytorch_model.bin")
    assert "neither model.safetensors nor model.safetensors.index.json" in _refusal(checkpoint)


@pytest.mark.parametrize("kept_bytes", [0, 4, 100, 200_000])
def test_truncated_weights_are_named(checkpoint: Path, kept_bytes: int) -> None:
    file = checkpoint / "model.safetensors"
    file.write_bytes(file.read_bytes()[:kept_bytes])
    message = _refusal(checkpoint)
    assert str(file) in message
    assert "download it again" in message


def test_missing_shard_is_named(sharded: Path) -> None:
    shard = sorted(sharded.glob("*.safetensors"))[1]
    shard.unlink()
    assert f"{shard} is missing" in _refusal(sharded)


def test_index_that_points_elsewhere_is_refused(sharded: Path) -> None:
    _edit_json(sharded / "model.safetensors.index.json", weight_map={Q_PROJ: "../secret.safetensors"})
    assert "a file of this directory" in _refusal(sharded)


def test_index_that_disagrees_with_its_shards_is_refused(sharded: Path) -> None:
    index = sharded / "model.safetensors.index.json"
    files = json.loads(index.read_text())["weight_map"]
    _edit_json(index, weight_map={**files, "model.norm.weight": files["model.embed_tokens.weight"]})
    message = _refusal(sharded)
    assert "lacks model.norm.weight" in message
    assert files["model.embed_tokens.weight"] in message


def test_missing_tensor_is_named(checkpoint: Path) -> None:
    _edit_tensors(checkpoint, lambda tensors: tensors.pop(Q_PROJ))
    assert f"lacks {Q_PROJ}" in _refusal(checkpoint)


def test_tensor_without_a_place_is_named(checkpoint: Path) -> None:
    _edit_tensors(checkpoint, lambda tensors: tensors.update({"model.layers.9.extra": torch.zeros(1)}))
    message = _refusal(checkpoint)
    assert "holds model.layers.9.extra" in message
    assert str(checkpoint / "model.safetensors") in message


def test_many_missing_tensors_make_a_short_message(checkpoint: Path) -> None:
    _edit_json(checkpoint / "config.json", num_hidden_layers=4)
    assert "and 6 more" in _refusal(checkpoint)


@pytest.mark.parametrize("shape", [[63, 64], [64, 63], [64], [64, 64, 1]])
def test_wrong_shape_is_named_with_both_shapes(checkpoint: Path, shape: list[int]) -> None:
    _edit_tensors(checkpoint, lambda tensors: tensors.update({Q_PROJ: torch.zeros(shape)}))
    message = _refusal(checkpoint)
    for part in [str(checkpoint / "model.safetensors"), Q_PROJ, str(shape), "[64, 64]"]:
        assert part in message


def test_quantized_weights_are_refused(checkpoint: Path) -> None:
    _edit_tensors(checkpoint, lambda tensors: tensors.update({Q_PROJ: torch.zeros(64, 64, dtype=torch.int8)}))
    message = _refusal(checkpoint)
    assert Q_PROJ in message
    assert "I8" in message
