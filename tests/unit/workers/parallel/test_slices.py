"""What a rank reads of a checkpoint: its own part, and nothing else."""

from collections.abc import Iterable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from kvasir_kernels.dispatch import Quantized
from kvasir_protocol.errors import CheckpointError
from kvasir_workers.model.decoder import Decoder
from kvasir_workers.model.filling import Filling
from kvasir_workers.model.linear import Linear
from kvasir_workers.model.loader import load_decoder, load_spec, weight_bytes
from kvasir_workers.model.weight_map import weight_map
from kvasir_workers.parallel.mesh import GangShape, RankPlace
from kvasir_workers.parallel.shard import ModelShard, cut_model
from kvasir_workers.parallel.slices import load_shard, parts_of, shard_bytes
from kvasir_workers.quantization.scheme import SCHEMES
from tests.checkpoints import make_checkpoint
from tests.float8_checkpoints import KINDS, SIZES, Float8Kind, make_float8_checkpoint, quantization_of

CPU = torch.device("cpu")
FAMILIES = ["LlamaForCausalLM", "Qwen2ForCausalLM", "Qwen3ForCausalLM", "MistralForCausalLM"]


class CountedTensor:
    """One tensor, and how many of its numbers were asked for."""

    def __init__(self, tensor: Tensor) -> None:
        self._tensor = tensor
        self.num_read = 0

    def __getitem__(self, part: tuple[slice, ...]) -> Tensor:
        found = self._tensor[part]
        self.num_read += found.numel()
        return found

    def get_shape(self) -> list[int]:
        return list(self._tensor.shape)

    def get_dtype(self) -> str:
        return "F32"


class CountedFile:
    """A file of tensors that nobody may read whole."""

    def __init__(self, tensors: dict[str, Tensor]) -> None:
        self.tensors = {name: CountedTensor(tensor) for name, tensor in tensors.items()}

    def keys(self) -> Iterable[str]:
        return self.tensors

    def get_slice(self, name: str) -> CountedTensor:
        return self.tensors[name]

    def get_tensor(self, name: str) -> Tensor:
        raise AssertionError(f"{name} is read whole")


def shards(path: Path, tp: int, pp: int) -> list[ModelShard]:
    shape = GangShape(tensor_parallel_size=tp, pipeline_parallel_size=pp)
    return [cut_model(load_spec(path), RankPlace(shape, rank)) for rank in range(shape.num_ranks)]


@pytest.fixture(scope="module", params=[False, True], ids=["untied", "tied"])
def checkpoint(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("checkpoint")
    return make_checkpoint(
        directory, "LlamaForCausalLM", tie_word_embeddings=request.param, attention_bias=True, mlp_bias=True
    )


@pytest.mark.parametrize(("tp", "pp"), [(2, 1), (4, 1), (1, 3), (2, 2)])
def test_ranks_read_each_number_as_often_as_it_is_held(checkpoint: Path, tp: int, pp: int) -> None:
    """Norms are on every rank of their stage, key heads on as many as need them, all else on one."""
    stored = load_file(checkpoint / "model.safetensors")
    file = CountedFile(stored)
    for shard in shards(checkpoint, tp, pp):
        places = weight_map(shard.whole)
        parts = {name: parts_of(places[name], shard) for name in stored}
        decoder = Decoder(shard.local, torch.float32, CPU, shard.part)
        Filling(decoder, None, parts).read(file, parts)
    copies = {name: file.tensors[name].num_read / stored[name].numel() for name in stored}
    key_copies = max(1, tp // 2)
    for name, number in copies.items():
        expected = tp if "norm" in name else key_copies if "k_proj" in name or "v_proj" in name else 1
        assert number == expected, name


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(("tp", "pp"), [(1, 1), (2, 1), (1, 2), (2, 3)])
def test_bytes_are_known_before_loading(family: str, tp: int, pp: int, tmp_path: Path) -> None:
    path = make_checkpoint(tmp_path, family)
    for shard in shards(path, tp, pp):
        decoder = load_shard(path, torch.bfloat16, CPU, shard)
        biases = [p for n, p in decoder.named_parameters() if n.endswith((".output.bias", ".down.bias"))]
        assert not biases or shard.place.tensor_rank == 0
        assert shard_bytes(path, torch.bfloat16, shard) == sum(p.nbytes for p in decoder.parameters())


def test_rank_of_two_reads_about_half_the_bytes(checkpoint: Path) -> None:
    whole = weight_bytes(checkpoint, torch.float32)
    for shard in shards(checkpoint, 2, 1):
        assert 0.49 < shard_bytes(checkpoint, torch.float32, shard) / whole < 0.51


def test_what_is_added_to_a_sum_is_added_by_one_rank(checkpoint: Path) -> None:
    first, second = (load_shard(checkpoint, torch.float32, CPU, shard) for shard in shards(checkpoint, 2, 1))
    whole = load_decoder(checkpoint, torch.float32, CPU)
    for layers in zip(whole.layers, first.layers, second.layers, strict=True):
        for bias, own, other in (
            [layer.attention.output.bias for layer in layers],
            [layer.feed_forward.down.bias for layer in layers],
        ):
            assert torch.equal(bias, own)
            assert not other.any()


def test_gang_of_one_has_the_whole_decoder(checkpoint: Path) -> None:
    (shard,) = shards(checkpoint, 1, 1)
    one, other = load_decoder(checkpoint, torch.float32, CPU), load_shard(checkpoint, torch.float32, CPU, shard)
    expected = one.state_dict()
    assert other.state_dict().keys() == expected.keys()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in other.state_dict().items())


def test_weights_of_many_files_are_those_of_one(tmp_path: Path) -> None:
    one = make_checkpoint(tmp_path / "one", "Qwen3ForCausalLM")
    many = make_checkpoint(tmp_path / "many", "Qwen3ForCausalLM", max_shard_size="100KB")
    for shard in shards(one, 2, 2):
        expected = load_shard(one, torch.float32, CPU, shard).state_dict()
        found = load_shard(many, torch.float32, CPU, shard).state_dict()
        assert all(torch.equal(tensor, found[name]) for name, tensor in expected.items())


def widened(matrix: Linear) -> Tensor:
    """The weights, dequantized where they are float8."""
    if matrix.weight_scale is None:
        return matrix.weight
    return Quantized(matrix.weight, matrix.weight_scale).widened()


@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
def test_ranks_have_together_what_a_float8_checkpoint_holds(kind: Float8Kind, tmp_path: Path) -> None:
    path = make_float8_checkpoint(tmp_path, kind)
    quantization = quantization_of(path)
    whole = load_decoder(path, torch.float32, CPU, quantization)
    ranks = [load_shard(path, torch.float32, CPU, shard, quantization) for shard in shards(path, 2, 1)]
    for layers in zip(whole.layers, *(rank.layers for rank in ranks), strict=True):
        down, *own_down = (widened(layer.feed_forward.down) for layer in layers)
        gate_up, *own_gate_up = (widened(layer.feed_forward.gate_up).unflatten(0, (2, -1)) for layer in layers)
        qkv, *own_qkv = (widened(layer.attention.qkv).unflatten(0, (3, -1)) for layer in layers)
        assert torch.equal(down, torch.cat(own_down, dim=1))
        assert torch.equal(gate_up, torch.cat(own_gate_up, dim=1))
        assert torch.equal(qkv, torch.cat(own_qkv, dim=1))


@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
def test_stages_have_together_what_a_float8_checkpoint_holds(kind: Float8Kind, tmp_path: Path) -> None:
    path = make_float8_checkpoint(tmp_path, kind)
    quantization = quantization_of(path)
    whole = load_decoder(path, torch.float32, CPU, quantization).layers.state_dict()
    first, second = (load_shard(path, torch.float32, CPU, shard, quantization) for shard in shards(path, 1, 2))
    found = first.layers.state_dict()
    for name, tensor in second.layers.state_dict().items():
        index, _, rest = name.partition(".")
        found[f"{int(index) + len(first.layers)}.{rest}"] = tensor
    assert found.keys() == whole.keys()
    assert all(torch.equal(tensor, found[name]) for name, tensor in whole.items())


def test_ranks_that_would_cut_blocks_are_refused(tmp_path: Path) -> None:
    path = make_float8_checkpoint(tmp_path, KINDS["fp8, blocks"])
    (shard, *_) = shards(path, 4, 1)
    with pytest.raises(
        CheckpointError, match="would be cut at 64, but its scales are for blocks of 128; choose a tens"
    ):
        shard_bytes(path, torch.float32, shard, quantization_of(path))


@pytest.mark.parametrize("name", ["fp8", "fp8-block"])
@pytest.mark.parametrize(("tp", "pp"), [(2, 1), (4, 1), (1, 3)])
def test_each_rank_quantizes_what_it_has(name: str, tp: int, pp: int, tmp_path: Path) -> None:
    path = make_checkpoint(tmp_path, "Qwen2ForCausalLM", **SIZES)
    for shard in shards(path, tp, pp):
        wide = load_shard(path, torch.float32, CPU, shard)
        ours = load_shard(path, torch.float32, CPU, shard, SCHEMES[name])
        assert shard_bytes(path, torch.float32, shard, SCHEMES[name]) == sum(p.nbytes for p in ours.parameters())
        expected = dict(wide.named_modules())
        matrices = {name: module for name, module in ours.named_modules() if isinstance(module, Linear)}
        assert len(matrices) == 4 * len(ours.layers)
        for name_of_matrix, matrix in matrices.items():
            plain = expected[name_of_matrix]
            assert isinstance(plain, Linear)
            # e4m3 has three digits after the first: half of the last is 1/16.
            torch.testing.assert_close(widened(matrix), plain.weight, rtol=1 / 16, atol=1e-3)
