"""The tree of settings: how it is read, and what it refuses."""

from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvasir_protocol.config import (
    ClusterConfig,
    EngineConfig,
    HandoverConfig,
    ModelConfig,
    PoolConfig,
    ReplicaConfig,
    RouterConfig,
    TenantWeight,
    load_config,
)
from kvasir_protocol.config_tree import build, merge
from kvasir_protocol.errors import ConfigError
from tests.unit.protocol.any_message import plain_values

MODEL = {"path": "/models/llama", "served_name": "llama"}


def load(tmp_path: Path, text: str | bytes, defaults: dict[str, object] | None = None) -> ClusterConfig:
    file = tmp_path / "cluster.yaml"
    file.write_bytes(text if isinstance(text, bytes) else text.encode())
    return load_config(file, {"model": MODEL} if defaults is None else defaults)


def assert_refused(tmp_path: Path, text: str, complaint: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load(tmp_path, text)
    assert complaint in str(caught.value)


def test_yaml_is_laid_over_the_defaults(tmp_path: Path) -> None:
    config = load(tmp_path, "model: {served_name: other}\nengine: {page_size: 32}\nhandover: {deadline_s: 3}\n")
    assert config == ClusterConfig(
        model=ModelConfig(path="/models/llama", served_name="other"),
        engine=EngineConfig(page_size=32),
        handover=HandoverConfig(deadline_s=3),
    )


def test_pools_and_keys_are_read_as_lists(tmp_path: Path) -> None:
    config = load(tmp_path, "pools: [{role: mixed, replicas: 3}]\nrouter: {api_keys: [a, b]}\n")
    assert (config.pools, config.router.api_keys) == ((PoolConfig(role="mixed", replicas=3),), ("a", "b"))


def test_weights_of_tenants_are_read_as_a_list(tmp_path: Path) -> None:
    config = load(tmp_path, "engine: {fair_share: true, tenant_weights: [{tenant: 3f, weight: 2}]}\n")
    assert config.engine.tenant_weights == (TenantWeight(tenant="3f", weight=2),)


def test_sizes_may_have_a_unit(tmp_path: Path) -> None:
    assert load(tmp_path, "engine: {kv_cache_bytes: 2GiB}").engine.kv_cache_bytes == 2**31
    assert load(tmp_path, "engine: {kv_cache_bytes: 4096}").engine.kv_cache_bytes == 4096


def test_tiers_are_off_until_they_have_a_budget(tmp_path: Path) -> None:
    assert (load(tmp_path, "{}").engine.host_cache_bytes, load(tmp_path, "{}").engine.disk_cache_bytes) == (0, 0)
    text = "engine: {host_cache_bytes: 10, disk_cache_bytes: 20, disk_cache_path: /cache}\n"
    engine = load(tmp_path, text).engine
    assert (engine.host_cache_bytes, engine.disk_cache_bytes, engine.disk_cache_path) == (10, 20, "/cache")


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("host_cache_bytes: -1", "engine.host_cache_bytes must be at least 0"),
        ("disk_cache_bytes: -1", "engine.disk_cache_bytes must be at least 0"),
        ("host_cache_bytes: 1, enable_prefix_caching: false", "engine.enable_prefix_caching is off"),
        ("disk_cache_bytes: 1, disk_cache_path: /cache", "needs engine.host_cache_bytes"),
        ("host_cache_bytes: 1, disk_cache_bytes: 1", "are to be set together"),
        ("host_cache_bytes: 1, disk_cache_path: /cache", "are to be set together"),
        ("host_cache_byte: 1", "did you mean 'host_cache_bytes'"),
    ],
)
def test_tiers_that_can_not_be_are_refused(tmp_path: Path, text: str, complaint: str) -> None:
    with pytest.raises(ConfigError, match=complaint):
        load(tmp_path, f"engine: {{{text}}}\n")


def test_a_file_that_sets_nothing_gives_the_defaults(tmp_path: Path) -> None:
    assert load(tmp_path, "{}\n") == ClusterConfig(model=ModelConfig(path="/models/llama", served_name="llama"))


def test_default_is_one_prefill_and_one_decode_pool(tmp_path: Path) -> None:
    assert [pool.role for pool in load(tmp_path, "{}").pools] == ["prefill", "decode"]


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("engine: {page_sise: 8}", "unknown setting 'engine.page_sise'; did you mean 'page_size'?"),
        ("modell: {}", "unknown setting 'modell'; did you mean 'model'?"),
        ("router: {zzzz: 1}", "unknown setting 'router.zzzz'; known are host, port"),
        ("pools: [{role: mixed, replica: 1}]", "unknown setting 'pools[0].replica'; did you mean 'replicas'?"),
        ("port: 80", "unknown setting 'port'; it belongs in 'router'"),
        ("tensor_parallel_size: 2", "unknown setting 'tensor_parallel_size'; it belongs in 'pools'"),
        ("1: 2", "unknown setting '1'"),
        ("true: 2", "unknown setting 'True'"),
    ],
)
def test_unknown_key_names_the_nearest_right_one(tmp_path: Path, text: str, complaint: str) -> None:
    assert_refused(tmp_path, text, complaint)


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("engine: {page_size: '8'}", "engine.page_size: expected a whole number, got '8'"),
        ("engine: {kv_cache_bytes: 1.5}", "engine.kv_cache_bytes: expected a size such as 512MiB, got 1.5"),
        ("model: {served_name: 7}", "model.served_name: expected a text (in quotes), got 7"),
        ("engine: {kv_cache_bytes: much}", "engine.kv_cache_bytes: 'much' is no size; write it like 512MiB"),
        ("engine: {page_size: 8.0}", "engine.page_size: expected a whole number, got 8.0"),
        ("engine: {page_size: true}", "engine.page_size: expected a whole number, got True"),
        ("engine: {page_size: null}", "engine.page_size: expected a whole number, got nothing"),
        ("engine: {enable_prefix_caching: 1}", "engine.enable_prefix_caching: expected true or false"),
        ("engine: {scheduling_policy: lifo}", "expected one of 'fcfs', 'priority', 'longest-prefix', got 'lifo'"),
        ("engine: {admission_policy: all}", "expected one of 'max-utilization', 'no-evict', got 'all'"),
        ("engine: {device: tpu}", "engine.device: expected one of 'auto', 'cpu', 'cuda', got 'tpu'"),
        ("engine: {device: [cpu]}", "engine.device: expected one of 'auto', 'cpu', 'cuda', got a list"),
        ("engine: 5", "engine: expected keys and values, got 5"),
        ("engine: [1]", "engine: expected keys and values"),
        ("handover: {deadline_s: soon}", "handover.deadline_s: expected a number, got 'soon'"),
        ("router: {api_keys: secret}", "router.api_keys: expected a list"),
        (
            "router: {api_keys: [a, 5]}",
            "router.api_keys[1]: expected a text (in quotes), got something else, which is not",
        ),
        ("pools: {role: mixed}", "pools: expected a list, got keys and values"),
        ("pools: [mixed]", "pools[0]: expected keys and values"),
        ("pools: [{role: both}]", "pools[0].role: expected one of 'prefill', 'decode', 'mixed', got 'both'"),
        ("pools: [{replicas: 2}]", "pools[0].role is missing"),
    ],
)
def test_wrong_type_names_the_path(tmp_path: Path, text: str, complaint: str) -> None:
    assert_refused(tmp_path, text, complaint)


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("engine: {page_size: 0}", "engine.page_size must be at least 1, got 0"),
        ("engine: {kv_cache_bytes: -1}", "engine.kv_cache_bytes must be at least 1, got -1"),
        ("engine: {max_num_seqs: 0}", "engine.max_num_seqs must be at least 1"),
        ("engine: {num_threads: 0}", "engine.num_threads must be at least 1"),
        ("engine: {max_waiting_requests: 0}", "engine.max_waiting_requests must be at least 1"),
        ("engine: {max_waiting_tokens: 0}", "engine.max_waiting_tokens must be at least 1"),
        ("engine: {max_prefill_chunk_tokens: 0}", "engine.max_prefill_chunk_tokens must be at least 1"),
        ("engine: {tenant_weights: [{tenant: a, weight: 0}]}", "the weight of tenant 'a' must be above 0"),
        ("engine: {tenant_weights: [{tenant: a, weight: .nan}]}", "the weight of tenant 'a' must be above 0"),
        (
            "engine: {tenant_weights: [{tenant: a, weight: 1}, {tenant: a, weight: 2}]}",
            "engine.tenant_weights names a tenant twice",
        ),
        ("engine: {max_num_seqs: 9, max_num_batched_tokens: 8}", "every running sequence can get a token a step"),
        ("model: {max_model_len: 1}", "model.max_model_len must be at least 2"),
        (f"model: {{served_name: {'n' * 129}}}", "model.served_name must have at most 128 characters, got 129"),
        ("handover: {deadline_s: 0}", "handover.deadline_s must be above 0"),
        ("handover: {deadline_s: .nan}", "handover.deadline_s must be above 0"),
        ("handover: {deadline_s: .inf}", "at most 30"),
        ("router: {port: 65536}", "router.port must be between 0 and 65535"),
        ("router: {port: -1}", "router.port must be between 0 and 65535"),
        ("router: {max_inflight_requests: 0}", "router.max_inflight_requests must be at least 1, got 0"),
        ("pools: [{role: mixed, node_resource: CPU}]", "node_resource must be a mark of your own"),
        ("router: {api_keys: ['']}", "must not hold an empty key"),
        ("pools: [{role: mixed, replicas: 0}]", "at least one replica"),
        ("engine: {rank_deadline_s: 0}", "rank_deadline_s must be above 0"),
        (
            "{engine: {host_cache_bytes: 1MiB}, pools: [{role: mixed, pipeline_parallel_size: 2}]}",
            "engine.host_cache_bytes is not supported for replicas of several ranks yet",
        ),
        (
            "{model: {quantization: int8}, pools: [{role: mixed, tensor_parallel_size: 2}]}",
            "model.quantization int8 is not supported for replicas of several ranks yet",
        ),
        (
            "{engine: {kv_cache_dtype: int8, host_cache_bytes: 1MiB}, pools: [{role: mixed}]}",
            "engine.kv_cache_dtype int8 has a scale for each token, which tiers do not keep; use fp8",
        ),
        (
            "engine: {kv_cache_dtype: int8}",
            "engine.kv_cache_dtype int8 has a scale for each token, which is not handed over; use fp8, or a mixed pool",
        ),
        ("pools: [{role: mixed, tensor_parallel_size: 0}]", "tensor_parallel_size must be at least 1, got 0"),
        ("pools: [{role: mixed, pipeline_parallel_size: -1}]", "pipeline_parallel_size must be at least 1, got -1"),
        ("pools: []", "one mixed pool, or one prefill and one decode pool"),
        ("pools: [{role: prefill}]", "one mixed pool, or one prefill and one decode pool; got ['prefill']"),
        ("pools: [{role: mixed}, {role: decode}]", "one mixed pool, or one prefill and one decode pool"),
        ("models: [{path: /s, served_name: s}]", "pools of model 's' must be one mixed pool, or one prefill and one"),
        ("models: [{path: /s, served_name: A.b}, {path: /t, served_name: a-B}]", "differ in more than signs"),
        ("models: [{path: /s, served_name: llama}]", "more than signs and capitals; got ['llama', 'llama']"),
        (
            "pools: [{role: mixed}, {role: mixed, model: s}]",
            "'s' is none of `models` []; pools of the first, 'llama', name none",
        ),
        (
            "{models: [{path: /s, served_name: s, quantization: int8}], "
            "pools: [{role: mixed}, {role: mixed, model: s, tensor_parallel_size: 2}]}",
            "model.quantization int8 is not supported for replicas of several ranks yet, which 's' has",
        ),
    ],
)
def test_contradiction_says_what_would_do(tmp_path: Path, text: str, complaint: str) -> None:
    assert_refused(tmp_path, text, complaint)


TWO_MODELS = """\
models:
  - path: /s
    served_name: s
    quantization: int8
pools:
  - {role: mixed}
  - {role: mixed, model: s, tensor_parallel_size: 2}
"""


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("router:\n  port: 80\nengin: {}\n", 3),
        ("router:\n  port: 80\n  hosts: a\n", 3),
        ("pools:\n  - role: prefill\n  - role: decode\n    replicas: many\n", 4),
        ("pools:\n  - role: prefill\n  - role: decode\n    replicas: 0\n", 4),
        ("engine:\n  max_num_seqs: 9\n  page_size: 0\n", 3),
        ("engine:\n  max_num_seqs: 9\n  max_num_batched_tokens: 8\n", 3),
        ("name: a\npools:\n  - role: prefill\n", 2),
        ("router: {port: 80}\nname: Ä\n", 2),
        ("engine:\n  page_size: 8\n  kv_cache_dtype: int8\n", 3),
        ("pools:\n  - role: mixed\n  - role: mixed\n    model: s\n", 4),
        (TWO_MODELS, 4),
        ("router:\r\n  port: 80\r\nengin: {}\r\n", 3),
        ("\ufeffrouter:\n  port: 80\nengin: {}\n", 3),
        ("# nothing\n", 1),
        ("- model\n", 1),
    ],
)
def test_an_error_names_the_line_of_the_file(tmp_path: Path, text: str, line: int) -> None:
    with pytest.raises(ConfigError) as caught:
        load(tmp_path, text)
    assert f"cluster.yaml:{line}: " in str(caught.value)


@pytest.mark.parametrize(
    "text", ["router: {api_keys: [{sesame: 1}]}", "router: {api_keys: sesame}", "router: [sesame]"]
)
def test_no_message_shows_a_key(tmp_path: Path, text: str) -> None:
    with pytest.raises(ConfigError, match="router") as caught:
        load(tmp_path, text)
    assert "sesame" not in str(caught.value)


def test_what_settles_a_configuration_may_blame_a_setting_of_the_file(tmp_path: Path) -> None:
    def settle(config: ClusterConfig) -> ClusterConfig:
        raise ConfigError("no such folder", "model.path")

    (tmp_path / "cluster.yaml").write_text("name: a\nmodel:\n  path: /m\n")
    with pytest.raises(ConfigError, match=r"cluster\.yaml:3: no such folder"):
        load_config(tmp_path / "cluster.yaml", {"model": MODEL}, settle)


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        (b"a: [", "is not YAML"),
        (b"a: 1\n\xff\xfe\xfd", ":2: is not YAML in UTF-8; save it"),
        (b"a: 1\nb: \x07", ":2: is not YAML: it has the character 0x07"),
        (b"- 1", "expected a mapping"),
        (b"just text", "expected a mapping"),
    ],
)
def test_file_that_is_no_mapping_is_refused(tmp_path: Path, content: bytes, complaint: str) -> None:
    with pytest.raises(ConfigError, match=complaint):
        load(tmp_path, content)


def test_missing_file_is_refused_with_the_reason(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="No such file"):
        load_config(tmp_path / "none.yaml", {})


def test_missing_model_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="model is missing"):
        load(tmp_path, "{}", defaults={})


def test_missing_part_of_the_model_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"model\.served_name is missing"):
        load(tmp_path, "model: {path: /m}", defaults={})


def test_merge_changes_neither_tree() -> None:
    below: dict[str, Any] = {"a": {"b": 1, "c": 2}, "d": 3}
    assert merge(below, {"a": {"b": 5}, "e": 6}) == {"a": {"b": 5, "c": 2}, "d": 3, "e": 6}
    assert below == {"a": {"b": 1, "c": 2}, "d": 3}


def test_value_replaces_a_tree_and_a_tree_a_value() -> None:
    assert merge({"a": {"b": 1}, "c": 2}, {"a": None, "c": {"d": 1}}) == {"a": None, "c": {"d": 1}}


@settings(max_examples=200)
@given(tree=st.dictionaries(st.sampled_from(["model", "engine", "handover", "pools", "router", "x"]), plain_values))
def test_any_tree_makes_a_configuration_or_a_config_error(tree: dict[str, object]) -> None:
    with suppress(ConfigError):
        build(ClusterConfig, merge({"model": MODEL}, tree))


def test_a_replicas_configuration_is_built_from_the_same_words() -> None:
    tree = {"replica_id": "p-0", "role": "prefill", "model": MODEL, "engine": {}, "handover": {}}
    config = build(ReplicaConfig, tree)
    assert (config.replica_id, config.host, config.port) == ("p-0", "127.0.0.1", 0)


def test_router_settings_have_few_surprises() -> None:
    assert RouterConfig() == RouterConfig(host=None, port=8000, placement="head", policy="least-loaded")


def test_a_step_has_fewer_tokens_on_a_cpu_and_one_for_each_sequence() -> None:
    assert EngineConfig(device="cuda").step_tokens == 2048
    assert EngineConfig(device="cpu").step_tokens == 512
    assert EngineConfig(device="cpu", max_num_seqs=1000).step_tokens == 1000
    assert EngineConfig(device="cpu", max_num_seqs=7, max_num_batched_tokens=9).step_tokens == 9
