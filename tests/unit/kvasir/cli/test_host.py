import json

import pytest

from kvasir.cli.host import check_model, has_one_gpu
from kvasir_cluster.pools import Hardware
from kvasir_protocol.config import ModelConfig, PoolConfig
from kvasir_protocol.errors import CheckpointError, ConfigError
from tests.unit.kvasir.cli.bare_model import CONFIG, make_bare_model


def check(folder, max_model_len=None):
    check_model(ModelConfig(path=str(folder), served_name="m", max_model_len=max_model_len))


@pytest.fixture
def folder(tmp_path):
    return make_bare_model(tmp_path)


@pytest.mark.parametrize(("num_gpus", "is_one"), [(0, False), (1, True), (2, False)])
def test_one_gpu_is_not_shared_by_two_pools_unless_told_so(num_gpus, is_one):
    assert has_one_gpu(Hardware(num_cores=8, num_gpus=num_gpus)) == is_one


def test_complete_folder_is_accepted(folder):
    check(folder)


@pytest.mark.parametrize(
    ("missing", "named"),
    [("config.json", "config.json"), ("tokenizer.json", "tokenizer.json"), ("model.safetensors", r"\*.safetensors")],
)
def test_what_a_folder_lacks_is_named(folder, missing, named):
    (folder / missing).unlink()
    with pytest.raises(CheckpointError, match=f"not a complete model folder: {named} missing"):
        check(folder)


@pytest.mark.parametrize(
    ("sizes", "named"),
    [
        ({"tensor_parallel_size": 3}, "does not divide the model's 4 heads; set one of 1, 2, 4"),
        ({"pipeline_parallel_size": 4}, "above the model's 3 layers"),
    ],
)
def test_ranks_that_a_model_can_not_be_cut_for_are_refused(folder, sizes, named):
    model = ModelConfig(path=str(folder), served_name="m")
    check_model(model, (PoolConfig(role="mixed", tensor_parallel_size=2, pipeline_parallel_size=3),))
    with pytest.raises(ConfigError, match=named):
        check_model(model, (PoolConfig(role="mixed", **sizes),))


def test_broken_config_is_told(folder):
    (folder / "config.json").write_text("{")
    with pytest.raises(CheckpointError, match=r"config\.json can't be read"):
        check(folder)


def test_config_that_is_no_map_is_told(folder):
    (folder / "config.json").write_text("[]")
    with pytest.raises(CheckpointError, match="it should hold a map"):
        check(folder)


def test_unknown_architecture_is_told_before_anything_starts(folder):
    (folder / "config.json").write_text(json.dumps({**CONFIG, "architectures": ["MambaForCausalLM"]}))
    with pytest.raises(CheckpointError, match="MambaForCausalLM"):
        check(folder)


def test_context_beyond_the_models_is_told_before_anything_starts(folder):
    check(folder, max_model_len=512)
    with pytest.raises(ConfigError, match="max_model_len 513 is beyond the model's 512 positions"):
        check(folder, max_model_len=513)
