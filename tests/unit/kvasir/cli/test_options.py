from pathlib import Path

import pytest

from kvasir.cli.main import build_parser
from kvasir.cli.options import make_config
from kvasir.demo import DEMO_MODEL_NAME, demo_model_path
from kvasir_protocol.errors import ConfigError


@pytest.fixture(autouse=True)
def no_key_in_the_environment(monkeypatch):
    monkeypatch.delenv("KVASIR_API_KEY", raising=False)


def configure(*arguments, default_is_mixed=False):
    return make_config(build_parser().parse_args(["serve", *map(str, arguments)]), default_is_mixed=default_is_mixed)


def roles(config):
    return {pool.role: pool.replicas for pool in config.pools}


def test_without_a_model_the_demo_model_is_served_from_separate_pools():
    config = configure()
    assert config.model.path == str(demo_model_path())
    assert config.model.served_name == DEMO_MODEL_NAME
    assert roles(config) == {"prefill": 1, "decode": 1}


def test_a_single_gpu_gets_one_mixed_pool_unless_told_otherwise():
    assert roles(configure(default_is_mixed=True)) == {"mixed": 1}
    assert roles(configure("--decode-replicas", 1, default_is_mixed=True)) == {"prefill": 1, "decode": 1}


def test_a_model_is_called_by_the_name_of_its_folder(tmp_path):
    assert configure(tmp_path / "Qwen3-0.6B").model.served_name == "Qwen3-0.6B"


@pytest.mark.parametrize("name", ["", " "])
def test_an_empty_name_is_refused(name):
    with pytest.raises(ConfigError, match="--served-model-name must not be empty"):
        configure("--served-model-name", name)


def test_relative_folders_become_absolute(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert configure("model").model.path == str(tmp_path / "model")


def test_flags_reach_their_settings():
    config = configure(
        "m", "--host", "0.0.0.0", "--port", 9, "--served-model-name", "n", "--dtype", "bfloat16", "--device", "cpu",
        "--max-model-len", 100, "--max-num-seqs", 7, "--max-num-batched-tokens", 70, "--kv-cache-memory-bytes", "1MiB",
        "--handover-transport", "tcp", "--api-key", "a", "--api-key", "b",
        "--host-cache-memory-bytes", "2MiB", "--enable-prefix-caching",
    )  # fmt: skip
    assert (config.router.host, config.router.port, config.router.api_keys) == ("0.0.0.0", 9, ("a", "b"))
    assert (config.model.served_name, config.model.dtype, config.model.max_model_len) == ("n", "bfloat16", 100)
    assert (config.engine.device, config.engine.max_num_seqs, config.engine.max_num_batched_tokens) == ("cpu", 7, 70)
    assert config.engine.kv_cache_bytes == 2**20
    assert config.engine.host_cache_bytes == 2**21
    assert not configure("m", "--no-enable-prefix-caching").engine.enable_prefix_caching
    assert config.handover.transport == "tcp"


def test_a_flag_that_is_no_size_is_refused():
    with pytest.raises(ConfigError, match=r"engine\.kv_cache_bytes: 'much' is no size"):
        configure("--kv-cache-memory-bytes", "much")


def test_flags_win_over_the_file_and_the_file_over_the_defaults(tmp_path):
    file = tmp_path / "cluster.yaml"
    file.write_text("model: {path: /models/a}\nrouter: {port: 1234, host: 127.0.0.2}\n")
    config = configure("--config", file, "--port", 99)
    assert (config.router.host, config.router.port) == ("127.0.0.2", 99)
    assert (config.model.path, config.model.served_name) == ("/models/a", "a")


def test_the_file_that_the_readme_shows_is_read(tmp_path):
    text = (Path(__file__).parents[4] / "README.md").read_text()
    file = tmp_path / "cluster.yaml"
    file.write_text(text.split("```yaml\n")[1].split("```")[0])
    config = configure("--config", file)
    assert (config.engine.kv_cache_bytes, roles(config)) == (2**31, {"prefill": 1, "decode": 2})


def test_pools_of_the_file_stay_unless_flags_name_some(tmp_path):
    file = tmp_path / "cluster.yaml"
    file.write_text("pools: [{role: prefill, replicas: 2}, {role: decode, replicas: 3}]\n")
    assert roles(configure("--config", file)) == {"prefill": 2, "decode": 3}
    assert roles(configure("--config", file, "--decode-replicas", 5)) == {"prefill": 2, "decode": 5}
    assert roles(configure("--config", file, "--mixed")) == {"mixed": 1}
    assert roles(configure("--config", file, "--mixed", 4)) == {"mixed": 4}


def test_unknown_setting_in_the_file_is_refused_with_the_nearest_right_one(tmp_path):
    file = tmp_path / "cluster.yaml"
    file.write_text("router: {prot: 1}\n")
    with pytest.raises(ConfigError, match=r"router\.prot.*did you mean 'port'"):
        configure("--config", file)


def test_one_mixed_pool_excludes_separate_ones():
    with pytest.raises(ConfigError, match="--mixed makes one pool"):
        configure("--mixed", "--prefill-replicas", 2)


def test_scheduling_policy_is_chosen_by_a_flag():
    assert configure().engine.scheduling_policy == "fcfs"
    assert configure("--scheduling-policy", "priority").engine.scheduling_policy == "priority"


def test_zero_replicas_are_refused():
    with pytest.raises(ConfigError, match="at least one replica"):
        configure("--decode-replicas", 0)


def test_several_ranks_make_one_mixed_pool_unless_told_otherwise():
    (pool,) = configure("--tensor-parallel-size", 2, "--pipeline-parallel-size", 3).pools
    assert (pool.role, pool.tensor_parallel_size, pool.pipeline_parallel_size) == ("mixed", 2, 3)


def test_separate_pools_may_have_several_ranks():
    pools = configure("--tensor-parallel-size", 2, "--decode-replicas", 2).pools
    assert [(pool.role, pool.replicas, pool.num_ranks) for pool in pools] == [("prefill", 1, 2), ("decode", 2, 2)]


def test_api_key_comes_from_the_environment_when_no_flag_gives_one(monkeypatch):
    monkeypatch.setenv("KVASIR_API_KEY", "secret")
    assert configure().router.api_keys == ("secret",)
    assert configure("--api-key", "other").router.api_keys == ("other",)
