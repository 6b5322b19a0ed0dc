"""The flags of `kvasir serve`, and the configuration that they, a file and the defaults make."""

import argparse
import os
from collections.abc import Mapping
from dataclasses import replace
from math import prod
from pathlib import Path
from typing import Any, get_args

from kvasir.demo import DEMO_MODEL_NAME, demo_model_path
from kvasir_protocol.config import (
    ClusterConfig,
    Device,
    DType,
    KvCacheDType,
    PoolConfig,
    QuantizationName,
    SchedulingPolicyName,
    TransportName,
    load_config,
)
from kvasir_protocol.config_tree import build, merge
from kvasir_protocol.errors import ConfigError
from kvasir_protocol.wire import to_plain

DEMO_MODEL = {"path": str(demo_model_path()), "served_name": ""}
"""The lowest defaults: the embedded model, which `settle_model` gives its name."""

STEP_TOKENS_HELP = "tokens of a step (default: 2048; on CPUs up to 1024, fewer the larger the model)"


def add_serve_options(parser: argparse.ArgumentParser) -> None:
    """Flags whose default is None leave the configuration as the file or the built-in default has it."""
    parser.add_argument(
        "model",
        nargs="?",
        metavar="MODEL",
        help="a folder in Hugging Face format, or an engine directory (default: the embedded demo model)",
    )
    parser.add_argument("--config", type=Path, metavar="FILE", help="settings as YAML; flags win over it")
    _front_door(parser.add_argument_group("the API"))
    _model(parser.add_argument_group("the model"))
    _engine(parser.add_argument_group("each replica"))
    _pools(parser.add_argument_group("which replicas"))


def _front_door(group: argparse._ArgumentGroup) -> None:
    add = group.add_argument
    add("--host", help="address to listen on (default: 127.0.0.1)")
    add("--port", type=int, help="port to listen on (default: 8000)")
    add("--served-model-name", metavar="NAME", help="what requests call the model (default: the folder's name)")
    add(
        "--api-key",
        action="append",
        metavar="KEY",
        help="ask for this key; may be given more than once (default: the environment's KVASIR_API_KEY)",
    )


def _model(group: argparse._ArgumentGroup) -> None:
    add = group.add_argument
    add("--dtype", choices=get_args(DType), help="what it computes in (default: as its config.json says)")
    add(
        "--quantization",
        choices=get_args(QuantizationName),
        help="weights of fewer bits, made while loading (int: CPU)",
    )
    add("--max-model-len", type=int, metavar="TOKENS", help="longest prompt and answer together")


def _engine(group: argparse._ArgumentGroup) -> None:
    add = group.add_argument
    add("--device", choices=get_args(Device), help="default: GPUs where there are any")
    add("--max-num-seqs", type=int, metavar="N", help="sequences computed at once (default: 256)")
    add(
        "--max-num-batched-tokens",
        type=int,
        metavar="N",
        help=STEP_TOKENS_HELP,
    )
    add("--scheduling-policy", choices=get_args(SchedulingPolicyName), help="who is next (default: fcfs)")
    add("--kv-cache-dtype", choices=get_args(KvCacheDType), help="of keys and values (default: as the model computes)")
    add("--kv-cache-memory-bytes", metavar="SIZE", help="memory for KV pages, such as 512MiB")
    add("--host-cache-memory-bytes", metavar="SIZE", help="host memory for pages that found no room (default: 0)")
    yes_or_no = argparse.BooleanOptionalAction
    add("--enable-prefix-caching", action=yes_or_no, default=None, help="reuse computed prompts (default: yes)")
    add("--overlap", action=yes_or_no, default=None, help="plan a step while the last one runs (default: not on CPUs)")
    add("--enforce-eager", action="store_true", default=None, help="no graphs of decode steps on a GPU")


def _pools(group: argparse._ArgumentGroup) -> None:
    add = group.add_argument
    add("--prefill-replicas", type=int, metavar="N", help="that compute prompts (default: 1)")
    add("--decode-replicas", type=int, metavar="N", help="that go on with the answers (default: 1)")
    add(
        "--mixed",
        nargs="?",
        type=int,
        const=1,
        metavar="N",
        help="instead of both, N replicas (1) that do both (default where there is one GPU, or several ranks)",
    )
    add("--tensor-parallel-size", type=int, metavar="N", help="ranks that share each layer of a replica")
    add("--pipeline-parallel-size", type=int, metavar="N", help="stages that share a replica's layers")
    add("--handover-transport", choices=get_args(TransportName), help="how pages go from prefill to decode")


def make_config(options: argparse.Namespace, *, default_is_mixed: bool) -> ClusterConfig:
    """Defaults, below the file, below the flags. Paths are absolute and the model has a name.

    default_is_mixed: what to run when neither file nor flags name pools. Raises ConfigError.
    """
    if options.served_model_name is not None and not options.served_model_name.strip():
        raise ConfigError("--served-model-name must not be empty; leave it out to use the folder's name")
    defaults: dict[str, Any] = {"model": DEMO_MODEL}
    if default_is_mixed or prod(_sizes(options).values()) > 1:  # who has cards for one gang seldom has for two
        defaults["pools"] = [{"role": "mixed"}]
    below = load_config(options.config, defaults) if options.config else build(ClusterConfig, defaults)
    return settle_model(build(ClusterConfig, merge(to_plain(below), _flags_tree(options, below.pools))))


def settle_model(config: ClusterConfig) -> ClusterConfig:
    """The configuration with absolute paths to the models, and a name where the first had none."""
    path = _absolute(config.model.path)
    name = config.model.served_name or (DEMO_MODEL_NAME if path == demo_model_path() else path.name)
    more = tuple(replace(model, path=str(_absolute(model.path))) for model in config.models)
    return replace(config, model=replace(config.model, path=str(path), served_name=name), models=more)


def _absolute(path: str) -> Path:
    return Path(path).expanduser().absolute()


def _flags_tree(options: argparse.Namespace, pools: tuple[PoolConfig, ...]) -> Mapping[str, Any]:
    """Only what was said on the command line."""
    environment_key = os.environ.get("KVASIR_API_KEY")
    tree = {
        "model": {
            "path": options.model,
            "served_name": options.served_model_name,
            "dtype": options.dtype,
            "quantization": options.quantization,
            "max_model_len": options.max_model_len,
        },
        "engine": {
            "device": options.device,
            "kv_cache_bytes": options.kv_cache_memory_bytes,
            "kv_cache_dtype": options.kv_cache_dtype,
            "host_cache_bytes": options.host_cache_memory_bytes,
            "max_num_seqs": options.max_num_seqs,
            "max_num_batched_tokens": options.max_num_batched_tokens,
            "scheduling_policy": options.scheduling_policy,
            "enable_prefix_caching": options.enable_prefix_caching,
            "overlap": options.overlap,
            "enforce_eager": options.enforce_eager,
        },
        "handover": {"transport": options.handover_transport},
        "router": {
            "host": options.host,
            "port": options.port,
            "api_keys": options.api_key or ([environment_key] if environment_key else None),
        },
    }
    said = {hall: {key: value for key, value in keys.items() if value is not None} for hall, keys in tree.items()}
    return {**said, "pools": _pools_tree(options, pools)}


def _pools_tree(options: argparse.Namespace, pools: tuple[PoolConfig, ...]) -> list[dict[str, Any]]:
    if options.mixed is not None and (options.prefill_replicas or options.decode_replicas):
        raise ConfigError("--mixed makes one pool; leave out --prefill-replicas and --decode-replicas")
    if any(pool.model for pool in pools):
        if options.mixed or options.prefill_replicas or options.decode_replicas:
            raise ConfigError("the file has pools of several models; say there how many replicas they have")
        return [to_plain(pool) | _sizes(options) for pool in pools]
    tree: dict[str, dict[str, Any]] = {pool.role: to_plain(pool) for pool in pools}
    if options.mixed is not None:
        tree = {"mixed": tree.get("mixed", {"role": "mixed"}) | {"replicas": options.mixed}}
    elif options.prefill_replicas is not None or options.decode_replicas is not None:
        tree = {role: tree.get(role, {"role": role}) for role in ("prefill", "decode")}
        for role, replicas in (("prefill", options.prefill_replicas), ("decode", options.decode_replicas)):
            if replicas is not None:
                tree[role] |= {"replicas": replicas}
    return [pool | _sizes(options) for pool in tree.values()]


def _sizes(options: argparse.Namespace) -> dict[str, int]:
    """What was said; nothing said, what an engine directory on the command line was built for."""
    names = ("tensor_parallel_size", "pipeline_parallel_size")
    said = {name: size for name in names if (size := getattr(options, name)) is not None}
    if said or options.model is None:
        return said
    from kvasir_workers.engine_directory.manifest import read_manifest

    manifest = read_manifest(Path(options.model).expanduser())
    return {} if manifest is None else {name: getattr(manifest, name) for name in names}
