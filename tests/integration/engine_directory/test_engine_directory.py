"""Engine directories from checkpoints: the same tokens, from one rank or several, and what is refused."""

import fcntl
import json
import os
import resource
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from kvasir_protocol.config import EngineConfig, ModelConfig, QuantizationName
from kvasir_protocol.errors import CheckpointError, ConfigError
from kvasir_workers.engine_directory.build import BuildOrder, _new_directory, build_engine_directory
from kvasir_workers.engine_directory.manifest import read_manifest, write_manifest
from kvasir_workers.engine_directory.settings import settings_in
from kvasir_workers.engine_directory.weights import open_engine_directory
from kvasir_workers.load import build_engine, load_model
from kvasir_workers.model.cache_scales import read_cache_scales
from kvasir_workers.model.fingerprint import fingerprint
from kvasir_workers.model.loader import load_decoder, load_spec, weight_bytes
from kvasir_workers.model.stored_quantization import stored_quantization
from kvasir_workers.parallel.mesh import GangShape, RankPlace
from kvasir_workers.parallel.shard import cut_model
from kvasir_workers.parallel.slices import load_shard, shard_bytes
from kvasir_workers.quantization.scheme import find_scheme
from tests.checkpoints import MODEL_TYPES, make_checkpoint
from tests.float8_checkpoints import KINDS, make_float8_checkpoint
from tests.gangs import ThreadGang, gang_config
from tests.integration.engine.conftest import DEMO_MODEL, run
from tests.integration.parallel.test_gang_answers import requests

CPU = torch.device("cpu")
ONE, TWO, STAGES = GangShape(), GangShape(tensor_parallel_size=2), GangShape(pipeline_parallel_size=2)


def order(
    source: Path, target: Path, shape: GangShape = ONE, quantization: QuantizationName | None = None
) -> BuildOrder:
    return BuildOrder(source=source, target=target, dtype=torch.float32, quantization=quantization, shape=shape)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_checkpoint(tmp_path_factory.mktemp("checkpoint"), "Qwen2ForCausalLM")


@pytest.fixture(scope="module")
def built(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("built") / "engine"
    build_engine_directory(order(checkpoint, directory))
    return directory


@pytest.fixture
def copy(built: Path, tmp_path: Path) -> Path:
    """A copy to break."""
    return Path(shutil.copytree(built, tmp_path / "copy"))


def answers(path: Path, quantization: QuantizationName | None = None) -> list[tuple[int, ...]]:
    model = ModelConfig(path=str(path), served_name="m", quantization=quantization)
    loaded = load_model(model, EngineConfig(device="cpu", page_size=16, kv_cache_bytes=32 * 2**20))
    engine = build_engine(loaded, EngineConfig(device="cpu", page_size=16))
    return [answer.token_ids for answer in run(engine, requests())]


@pytest.mark.parametrize("quantization", [None, "int8", "int4", "fp8", "fp8-block"])
def test_tokens_are_those_of_the_checkpoint(quantization: QuantizationName | None, tmp_path: Path) -> None:
    build_engine_directory(order(DEMO_MODEL, tmp_path / "engine", quantization=quantization))
    assert answers(tmp_path / "engine") == answers(DEMO_MODEL, quantization)


def gang_answers(path: Path, shape: GangShape, quantization: QuantizationName | None) -> list[tuple[int, ...]]:
    config = gang_config(DEMO_MODEL, shape, 300, max_num_batched_tokens=64, max_num_seqs=8)
    with ThreadGang(path, shape, config, quantization=quantization) as gang:
        return [answer.token_ids for answer in run(gang.engine(), requests())]


@pytest.mark.parametrize("quantization", [None, "fp8"])
@pytest.mark.parametrize("shape", [TWO, STAGES], ids=str)
def test_tokens_of_several_ranks_are_those_of_the_checkpoint(
    shape: GangShape, quantization: QuantizationName | None, tmp_path: Path
) -> None:
    build_engine_directory(order(DEMO_MODEL, tmp_path / "engine", shape, quantization))
    assert gang_answers(tmp_path / "engine", shape, None) == gang_answers(DEMO_MODEL, shape, quantization)


@pytest.mark.parametrize("family", MODEL_TYPES)
@pytest.mark.parametrize("shape", [ONE, TWO, GangShape(tensor_parallel_size=2, pipeline_parallel_size=3)], ids=str)
def test_each_rank_gets_what_it_would_cut_from_the_checkpoint(family: str, shape: GangShape, tmp_path: Path) -> None:
    source = make_checkpoint(tmp_path / "checkpoint", family, tie_word_embeddings=shape is ONE)
    build_engine_directory(order(source, tmp_path / "engine", shape))
    spec = load_decoder(source, torch.float32, CPU).spec
    for rank in range(shape.num_ranks):
        shard = cut_model(spec, RankPlace(shape, rank))
        expected = dict(load_shard(source, torch.float32, CPU, shard).named_parameters())
        found = dict(load_shard(tmp_path / "engine", torch.float32, CPU, shard).named_parameters())
        assert expected.keys() == found.keys()
        assert all(torch.equal(expected[name], found[name]) for name in expected)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shape", [ONE, TWO], ids=str)
def test_a_checkpoint_that_is_float8_already_stays_what_it_is(kind: str, shape: GangShape, tmp_path: Path) -> None:
    source = make_float8_checkpoint(tmp_path / "checkpoint", KINDS[kind])
    build_engine_directory(order(source, tmp_path / "engine", shape))
    spec = load_spec(source)
    schemes = [stored_quantization(path, spec) for path in (source, tmp_path / "engine")]
    assert schemes[0] == schemes[1] is not None
    assert fingerprint(tmp_path / "engine") == fingerprint(source, schemes[0])
    for rank in range(shape.num_ranks):
        shard = cut_model(spec, RankPlace(shape, rank))
        expected = dict(load_shard(source, torch.float32, CPU, shard, schemes[0]).named_parameters())
        found = dict(load_shard(tmp_path / "engine", torch.float32, CPU, shard, schemes[1]).named_parameters())
        assert list(expected) == list(found)
        assert all(torch.equal(expected[name].view(torch.uint8), found[name].view(torch.uint8)) for name in expected)


def test_weights_are_read_in_the_order_in_which_they_lie(built: Path) -> None:
    file = built / "weights" / "rank-0.safetensors"
    header = file.read_bytes()[8:].split(b"}}")[0].decode()
    names = list(dict(load_decoder(built, torch.float32, CPU).named_parameters()))
    places = [header.index(f'"{name}"') for name in names]
    assert places == sorted(places)


def test_it_has_the_checkpoints_name_and_size(checkpoint: Path, built: Path) -> None:
    assert fingerprint(built) == fingerprint(checkpoint)
    assert weight_bytes(built, torch.float32) == weight_bytes(checkpoint, torch.float32)


def test_a_quantized_one_has_the_name_and_size_of_what_the_checkpoint_becomes(checkpoint: Path, tmp_path: Path) -> None:
    build_engine_directory(order(checkpoint, tmp_path / "engine", quantization="int4"))
    scheme = find_scheme("int4")
    assert fingerprint(tmp_path / "engine") == fingerprint(checkpoint, scheme)
    assert weight_bytes(tmp_path / "engine", torch.float32) == weight_bytes(checkpoint, torch.float32, scheme)


def test_tokenizer_and_config_are_copied_and_weights_are_not(tmp_path: Path) -> None:
    build_engine_directory(order(DEMO_MODEL, tmp_path / "engine"))
    names = {path.name for path in (tmp_path / "engine").iterdir()}
    texts = {"config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json"}
    assert names == {*texts, "engine.json", "kernels", "weights"}
    assert all((tmp_path / "engine" / name).read_bytes() == (DEMO_MODEL / name).read_bytes() for name in texts)


def test_a_list_of_weight_files_stays_behind(tmp_path: Path) -> None:
    source = make_checkpoint(tmp_path / "checkpoint", "LlamaForCausalLM", max_shard_size="100KB")
    assert (source / "model.safetensors.index.json").is_file()
    build_engine_directory(order(source, tmp_path / "engine"))
    assert not (tmp_path / "engine" / "model.safetensors.index.json").exists()


def flip(file: Path, place: int) -> None:
    with file.open("r+b") as stream:
        stream.seek(place)
        (byte,) = stream.read(1)
        stream.seek(place)
        stream.write(bytes([byte ^ 1]))


def test_weights_that_were_exchanged_are_refused_at_start(copy: Path, checkpoint: Path, tmp_path: Path) -> None:
    other = make_checkpoint(tmp_path / "other", "Qwen2ForCausalLM", seed=1)
    build_engine_directory(order(other, tmp_path / "second"))
    shutil.copyfile(tmp_path / "second" / "weights" / "rank-0.safetensors", copy / "weights" / "rank-0.safetensors")
    with pytest.raises(
        CheckpointError, match=rf"is not the file that was built; .*`kvasir build {checkpoint} -o {copy}"
    ):
        load_decoder(copy, torch.float32, CPU)


def resize(file: Path, size: int) -> None:
    """size: of the file; below 0, so many bytes less than it has."""
    os.truncate(file, size if size >= 0 else file.stat().st_size + size)


@pytest.mark.parametrize("size", [0, 5, 3000, 4097, -1])
def test_weights_that_were_cut_off_are_refused_at_start(copy: Path, size: int) -> None:
    resize(copy / "weights" / "rank-0.safetensors", size)
    with pytest.raises(CheckpointError, match="is not the file that was built"):
        load_decoder(copy, torch.float32, CPU)


@pytest.mark.parametrize("size", [0, -1, 10**7])
def test_what_weights_of_another_size_would_take_is_not_told(copy: Path, checkpoint: Path, size: int) -> None:
    resize(copy / "weights" / "rank-0.safetensors", size)
    with pytest.raises(
        CheckpointError, match=rf"is not the file that was built .*`kvasir build {checkpoint} -o {copy}"
    ):
        weight_bytes(copy, torch.float32)


def test_a_rank_looks_at_its_own_weights_before_it_plans(tmp_path: Path) -> None:
    build_engine_directory(order(DEMO_MODEL, tmp_path / "engine", TWO))
    resize(tmp_path / "engine" / "weights" / "rank-1.safetensors", -1)
    spec = load_spec(tmp_path / "engine")
    assert shard_bytes(tmp_path / "engine", torch.float32, cut_model(spec, RankPlace(TWO, 0))) > 0
    with pytest.raises(CheckpointError, match=r"rank-1\.safetensors is not the file that was built"):
        shard_bytes(tmp_path / "engine", torch.float32, cut_model(spec, RankPlace(TWO, 1)))


def test_a_missing_rank_is_refused_at_start(copy: Path) -> None:
    (copy / "weights" / "rank-0.safetensors").unlink()
    with pytest.raises(CheckpointError, match="is not the file that was built"):
        load_decoder(copy, torch.float32, CPU)


def set_config(directory: Path, **settings: object) -> None:
    file = directory / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | settings))


def test_another_config_is_refused_at_start_though_the_weights_fit(copy: Path, checkpoint: Path) -> None:
    set_config(copy, rms_norm_eps=0.5)
    with pytest.raises(
        CheckpointError, match=rf"config\.json changed after it was built; .*`kvasir build {checkpoint} -o {copy}"
    ):
        load_decoder(copy, torch.float32, CPU)


def test_weights_of_other_sizes_than_this_versions_are_refused_at_start(copy: Path) -> None:
    set_config(copy, intermediate_size=48)
    manifest = read_manifest(copy)
    assert manifest is not None
    write_manifest(copy, replace(manifest, settings=settings_in(copy)))
    with pytest.raises(CheckpointError, match=r"layers\.0\.feed_forward\.gate_up\.weight has another shape"):
        load_decoder(copy, torch.float32, CPU)


def test_reading_it_through_finds_a_single_bit(copy: Path) -> None:
    directory = open_engine_directory(copy)
    assert directory is not None
    directory.check()
    flip(copy / "weights" / "rank-0.safetensors", 5001)
    with pytest.raises(CheckpointError, match="is not the file that was built"):
        directory.check()


def test_nothing_that_is_there_is_overwritten(checkpoint: Path, built: Path) -> None:
    with pytest.raises(ConfigError, match="is there already"):
        build_engine_directory(order(checkpoint, built))


def test_an_engine_directory_is_not_built_from_another(built: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="is an engine directory; build from the checkpoint"):
        build_engine_directory(order(built, tmp_path / "engine"))


def test_a_build_that_fails_leaves_nothing(checkpoint: Path, tmp_path: Path) -> None:
    source = Path(shutil.copytree(checkpoint, tmp_path / "source"))
    os.truncate(source / "model.safetensors", 50_000)
    with pytest.raises(CheckpointError):
        build_engine_directory(order(source, tmp_path / "engine"))
    assert [path.name for path in tmp_path.iterdir()] == ["source"]


def test_a_place_that_can_not_be_written_is_named(checkpoint: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match=r"file/engine can't be written \(.*Not a directory"):
        build_engine_directory(order(checkpoint, tmp_path / "file" / "engine"))


def test_a_disk_that_is_full_is_named_and_gets_its_room_back(checkpoint: Path, tmp_path: Path) -> None:
    largest = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, largest[1]))
    try:
        with pytest.raises(ConfigError, match=r"engine can't be written \(.*File too large"):
            build_engine_directory(order(checkpoint, tmp_path / "engine"))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, largest)
    assert list(tmp_path.iterdir()) == []


def test_what_was_built_is_kept_if_its_name_was_taken_meanwhile(tmp_path: Path) -> None:
    target = tmp_path / "engine"

    def build_while_another_takes_the_name() -> None:
        with _new_directory(target) as directory:
            (directory / "weights").touch()
            target.touch()

    with pytest.raises(ConfigError, match=r"can't be given its name .* is in .*\.engine\.building: rename it"):
        build_while_another_takes_the_name()
    assert (tmp_path / ".engine.building" / "weights").exists()


def test_a_header_of_an_absurd_size_is_refused(checkpoint: Path, tmp_path: Path) -> None:
    source = Path(shutil.copytree(checkpoint, tmp_path / "source"))
    for size in (2**62, 2**64 - 1, 3):
        with (source / "model.safetensors").open("r+b") as stream:
            stream.write(size.to_bytes(8, "little"))
        with pytest.raises(CheckpointError, match=r"model\.safetensors (says that its header|has a header)"):
            fingerprint(source)


def test_what_a_build_that_was_killed_has_left_is_no_engine_directory_and_goes(
    checkpoint: Path, tmp_path: Path
) -> None:
    left = tmp_path / ".engine.building"
    (left / "weights").mkdir(parents=True)
    (left / "weights" / "rank-7.safetensors").touch()
    (left / "rubbish").touch()
    build_engine_directory(order(checkpoint, tmp_path / "engine"))
    assert [path.name for path in tmp_path.iterdir()] == ["engine"]
    assert [path.name for path in (tmp_path / "engine" / "weights").iterdir()] == ["rank-0.safetensors"]
    assert not (tmp_path / "engine" / "rubbish").exists()


def test_what_another_process_builds_is_left_to_it(checkpoint: Path, tmp_path: Path) -> None:
    theirs = tmp_path / ".engine.building"
    theirs.mkdir()
    (theirs / "half").touch()
    descriptor = os.open(theirs, os.O_RDONLY)
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    with pytest.raises(ConfigError, match="is being built by another process"):
        build_engine_directory(order(checkpoint, tmp_path / "engine"))
    os.close(descriptor)
    assert (theirs / "half").exists()


KEY_SCALE = "model.layers.1.self_attn.k_scale"


def with_key_scale(checkpoint: Path, target: Path, *scale: float) -> Path:
    source = Path(shutil.copytree(checkpoint, target))
    tensors = load_file(source / "model.safetensors") | {KEY_SCALE: torch.tensor(scale)}
    save_file(tensors, source / "model.safetensors", metadata={"format": "pt"})
    return source


def test_scales_of_a_float8_cache_come_with_it(checkpoint: Path, tmp_path: Path) -> None:
    source = with_key_scale(checkpoint, tmp_path / "checkpoint", 0.25, 0.5)
    for path in (source, checkpoint):
        build_engine_directory(order(path, tmp_path / path.parent.name))
        spec = load_spec(path)
        found = read_cache_scales(tmp_path / path.parent.name, spec, CPU)
        for ours, theirs in zip(found, read_cache_scales(path, spec, CPU), strict=True):
            assert torch.equal(ours.key, theirs.key) and torch.equal(ours.value, theirs.value)
    assert (tmp_path / source.parent.name / "weights" / "cache-scales.safetensors").is_file()


def test_other_scales_of_a_cache_than_were_built_are_refused_at_start(checkpoint: Path, tmp_path: Path) -> None:
    built = tmp_path / "engine"
    build_engine_directory(order(with_key_scale(checkpoint, tmp_path / "checkpoint", 0.25), built))
    load_decoder(built, torch.float32, CPU)
    save_file({KEY_SCALE: torch.tensor([0.5])}, built / "weights" / "cache-scales.safetensors")
    with pytest.raises(CheckpointError, match=r"weights/cache-scales\.safetensors changed after it was built"):
        load_decoder(built, torch.float32, CPU)


def test_scales_of_a_cache_that_are_gone_or_came_later_are_refused_at_start(
    checkpoint: Path, copy: Path, tmp_path: Path
) -> None:
    built = tmp_path / "engine"
    build_engine_directory(order(with_key_scale(checkpoint, tmp_path / "checkpoint", 0.25), built))
    (built / "weights" / "cache-scales.safetensors").rename(copy / "weights" / "cache-scales.safetensors")
    for directory in (built, copy):
        with pytest.raises(CheckpointError, match=r"weights/cache-scales\.safetensors changed after it was built"):
            load_decoder(directory, torch.float32, CPU)
