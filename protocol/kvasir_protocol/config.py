"""The one tree of settings, read from YAML or made from flags, checked at load and frozen."""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from kvasir_protocol.config_tree import build, merge
from kvasir_protocol.errors import ConfigError
from kvasir_protocol.ids import ReplicaId
from kvasir_protocol.messages import MAX_DEADLINE_S
from kvasir_protocol.view import Role
from kvasir_protocol.yaml_lines import read_document

DType = Literal["auto", "float32", "bfloat16", "float16"]
QuantizationName = Literal["int8", "int4", "int4-g64", "int4-g128", "fp8", "fp8-block"]
_FOR_ANY_RANKS: tuple[QuantizationName | None, ...] = (None, "fp8", "fp8-block")
KvCacheDType = Literal["auto", "fp8", "fp8_e4m3", "int8"]
Device = Literal["auto", "cpu", "cuda"]
RouterPlacement = Literal["head", "every-host"]
RoutingPolicyName = Literal["least-loaded", "round-robin", "conditional"]
SchedulingPolicyName = Literal["fcfs", "priority", "longest-prefix"]
AdmissionPolicyName = Literal["max-utilization", "no-evict"]
TransportName = Literal["auto", "shared-memory", "process-group", "tcp"]


MAX_NAME_LENGTH = 128
"""Of a model: it is a part of the names of replicas and of their shared memory, which the system ends at 255."""


RAYS_OWN = ("CPU", "GPU", "memory", "object_store_memory")
"""Resources that every host has, in amounts of their own: no mark by which hosts are told apart."""


def _require(condition: bool, message: str, setting: str | None = None) -> None:
    """setting: its path, where the message does not begin with it."""
    if not condition:
        raise ConfigError(message, setting)


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelConfig:
    """path: a directory in Hugging Face format. max_model_len None: as long as the model and the pages allow.

    quantization: what the weights become while they are loaded, integers on CPUs only; None: they stay what they are.
    """

    path: str
    served_name: str
    dtype: DType = "auto"
    quantization: QuantizationName | None = None
    max_model_len: int | None = None

    def __post_init__(self) -> None:
        length = len(self.served_name)
        _require(
            length <= MAX_NAME_LENGTH,
            f"model.served_name must have at most {MAX_NAME_LENGTH} characters, got {length}: {self.served_name[:32]}…",
        )
        _require(
            self.max_model_len is None or self.max_model_len >= 2,
            f"model.max_model_len must be at least 2, got {self.max_model_len}",
        )


_OPTIONAL_COUNTS = (
    "kv_cache_bytes",
    "num_threads",
    "max_num_batched_tokens",
    "max_prefill_chunk_tokens",
    "max_waiting_requests",
    "max_waiting_tokens",
)

_STEP_TOKENS = 2048
_CPU_STEP_TOKENS = 512


@dataclass(frozen=True, slots=True, kw_only=True)
class TenantWeight:
    """A tenant of weight 2 gets twice the tokens of one of weight 1, which is what others have."""

    tenant: str
    weight: float

    def __post_init__(self) -> None:
        _require(0 < self.weight < float("inf"), f"the weight of tenant {self.tenant!r} must be above 0")


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineConfig:
    """How one replica computes. kv_cache_bytes None: a share of the memory that is free when it starts.

    kv_cache_dtype: what keys and values are stored in; auto is what the model computes in.

    max_num_batched_tokens: of one step; None is what `step_tokens` says.
    max_prefill_chunk_tokens: what one sequence may get of a step that it shares; None is all that others leave.
    fair_share: between tenants whoever had fewest tokens is next; scheduling_policy orders within a tenant.
    max_waiting_requests, max_waiting_tokens: beyond them a replica refuses at once; None is without bound.
    publish_kv_events: tell routers what the prefix cache holds. host_cache_bytes: host memory for pages that the device
    has no room for; disk_cache_bytes: for those that host memory has none for, in a file in disk_cache_path. 0: none.
    overlap: a step is planned while the one before runs; None where the device is not the host's own processor, which
    would have to do both at once (demo model, 2 CPU cores, batch 32: 0.84 of the plain loop's tokens/s).
    Pipeline stages overlap in any case. enforce_eager: without graphs of decode steps, which GPUs else replay; starts
    sooner and takes less memory. rank_deadline_s: of several ranks, how long one waits for another before the
    gang counts as broken; it must be longer than a full step takes. Bytes are for all ranks of a replica together.
    """

    device: Device = "auto"
    page_size: int = 16
    kv_cache_dtype: KvCacheDType = "auto"
    kv_cache_bytes: int | None = None
    max_num_seqs: int = 256
    max_num_batched_tokens: int | None = None
    enable_prefix_caching: bool = True
    publish_kv_events: bool = False
    overlap: bool | None = None
    enforce_eager: bool = False
    num_threads: int | None = None
    scheduling_policy: SchedulingPolicyName = "fcfs"
    admission_policy: AdmissionPolicyName = "max-utilization"
    max_prefill_chunk_tokens: int | None = None
    fair_share: bool = False
    tenant_weights: tuple[TenantWeight, ...] = ()
    max_waiting_requests: int | None = 1024
    max_waiting_tokens: int | None = None
    host_cache_bytes: int = 0
    disk_cache_bytes: int = 0
    disk_cache_path: str | None = None
    rank_deadline_s: float = 30.0

    def __post_init__(self) -> None:
        for name in ("page_size", "max_num_seqs"):
            value = getattr(self, name)
            _require(value >= 1, f"engine.{name} must be at least 1, got {value}")
        for name in _OPTIONAL_COUNTS:
            value = getattr(self, name)
            _require(value is None or value >= 1, f"engine.{name} must be at least 1, got {value}")
        _require(
            self.step_tokens >= self.max_num_seqs,
            f"engine.max_num_batched_tokens ({self.step_tokens}) must be at least "
            f"engine.max_num_seqs ({self.max_num_seqs}), so that every running sequence can get a token a step",
        )
        _require(self.rank_deadline_s > 0, f"engine.rank_deadline_s must be above 0, got {self.rank_deadline_s}")
        tenants = [share.tenant for share in self.tenant_weights]
        _require(len(set(tenants)) == len(tenants), "engine.tenant_weights names a tenant twice")
        self._check_tiers()
        _require(
            self.kv_cache_dtype != "int8" or not self.host_cache_bytes,
            "engine.kv_cache_dtype int8 has a scale for each token, which tiers do not keep; use fp8, or leave out "
            "engine.host_cache_bytes",
        )

    @property
    def step_tokens(self) -> int:
        """The most tokens of one step. device is to be settled before: as it was asked for, it may be "auto".

        Unless it was set: 512 on CPUs, which compute a prompt's tokens hardly faster together, so that nobody waits
        long for others' prompts (a replica takes more of a small model and fewer of a large one); elsewhere 2,048. In
        any case one for each running sequence.
        """
        if self.max_num_batched_tokens is not None:
            return self.max_num_batched_tokens
        return max(_CPU_STEP_TOKENS if self.device == "cpu" else _STEP_TOKENS, self.max_num_seqs)

    def _check_tiers(self) -> None:
        for name in ("host_cache_bytes", "disk_cache_bytes"):
            value = getattr(self, name)
            _require(value >= 0, f"engine.{name} must be at least 0, got {value}")
        _require(
            self.enable_prefix_caching or not self.host_cache_bytes,
            "engine.host_cache_bytes keeps pages of the prefix cache, and engine.enable_prefix_caching is off",
        )
        _require(
            not self.disk_cache_bytes or self.host_cache_bytes > 0,
            "engine.disk_cache_bytes needs engine.host_cache_bytes: pages reach the disk through host memory",
        )
        _require(
            (self.disk_cache_bytes > 0) == (self.disk_cache_path is not None),
            "engine.disk_cache_bytes and engine.disk_cache_path are to be set together",
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class HandoverConfig:
    """Pages from prefill to decode. deadline_s: from reservation to commit; after it the decode side prefills.

    transport: process-group is NCCL between GPUs and gloo between CPUs, which know no keys. encrypt: contents that go
    over TCP; without it they are in the clear. Both are for a network of your own.
    """

    deadline_s: float = 10.0
    transport: TransportName = "auto"
    encrypt: bool = True

    def __post_init__(self) -> None:
        _require(
            0 < self.deadline_s <= MAX_DEADLINE_S,
            f"handover.deadline_s must be above 0 and at most {MAX_DEADLINE_S:g}, got {self.deadline_s}",
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolConfig:
    """Replicas of one role. A prefill pool needs a decode pool of the same model beside it, and the other way round.

    node_resource: only hosts that offer this custom resource of Ray (`ray start --resources`) hold the pool; None: any.
    model: the served name of the one that it serves, where there are several; "": the first.
    """

    role: Role
    replicas: int = 1
    tensor_parallel_size: int = 1
    pipeline_parallel_size: int = 1
    node_resource: str | None = None
    model: str = ""

    def __post_init__(self) -> None:
        _require(self.node_resource != "", f"pool {self.role!r}: node_resource must not be empty; leave it out")
        _require(
            self.node_resource not in RAYS_OWN,
            f"pool {self.role!r}: node_resource must be a mark of your own, as `ray start --resources` gives to hosts, "
            f"and not {self.node_resource}, which ranks ask for themselves",
        )
        _require(self.replicas >= 1, f"pool {self.role!r} needs at least one replica, got replicas: {self.replicas}")
        for name in ("tensor_parallel_size", "pipeline_parallel_size"):
            value = getattr(self, name)
            _require(value >= 1, f"pool {self.role!r}: {name} must be at least 1, got {value}")

    @property
    def num_ranks(self) -> int:
        """Of one replica."""
        return self.tensor_parallel_size * self.pipeline_parallel_size

    @property
    def name(self) -> str:
        """Such as `decode`, or `small/decode` of a model that is not the first."""
        return f"{self.model}/{self.role}" if self.model else self.role


@dataclass(frozen=True, slots=True, kw_only=True)
class RouterConfig:
    """The HTTP front door. With api_keys every route but /health asks for one of them.

    host None: with `kvasir serve` 127.0.0.1, with `kvasir up` the address under which Ray knows each host.
    placement: on which hosts `kvasir up` puts a router; `kvasir serve` has one, beside it.
    """

    host: str | None = None
    port: int = 8000
    placement: RouterPlacement = "head"
    api_keys: tuple[str, ...] = ()
    policy: RoutingPolicyName = "least-loaded"
    max_inflight_requests: int = 1024

    def __post_init__(self) -> None:
        _require(0 <= self.port <= 65535, f"router.port must be between 0 and 65535, got {self.port}")
        _require(all(self.api_keys), "router.api_keys must not hold an empty key")
        _require(
            self.max_inflight_requests >= 1,
            f"router.max_inflight_requests must be at least 1, got {self.max_inflight_requests}",
        )


SEPARATE_POOLS = (PoolConfig(role="prefill"), PoolConfig(role="decode"))


@dataclass(frozen=True, slots=True, kw_only=True)
class ClusterConfig:
    """Everything that a person may set. name tells clusters apart that `kvasir up` made in the same Ray.

    models: those beside the first, behind the same routers; each needs pools that name it.
    """

    model: ModelConfig
    models: tuple[ModelConfig, ...] = ()
    name: str = "main"
    engine: EngineConfig = field(default_factory=EngineConfig)
    handover: HandoverConfig = field(default_factory=HandoverConfig)
    pools: tuple[PoolConfig, ...] = SEPARATE_POOLS
    router: RouterConfig = field(default_factory=RouterConfig)

    def __post_init__(self) -> None:
        _require(
            re.fullmatch(r"[a-z][a-z0-9-]{0,30}", self.name) is not None,
            f"name must be 1 to 31 of a-z, 0-9 and -, the first a letter; got {self.name!r}",
        )
        self._check_models()
        for model in ("", *(model.served_name for model in self.models)):
            roles = [pool.role for pool in self.pools if pool.model == model]
            _require(
                sorted(roles) in (["mixed"], ["decode", "prefill"]),
                f"pools {f'of model {model!r} ' if model else ''}must be one mixed pool, or one prefill and one decode "
                f"pool; got {roles}",
            )
        _require(
            not self.engine.host_cache_bytes or all(pool.num_ranks == 1 for pool in self.pools),
            "engine.host_cache_bytes is not supported for replicas of several ranks yet; leave it out",
        )
        _require(
            self.engine.kv_cache_dtype != "int8" or all(pool.role == "mixed" for pool in self.pools),
            "engine.kv_cache_dtype int8 has a scale for each token, which is not handed over; use fp8, or a mixed pool",
        )
        for pool in self.pools:
            served = self.model_of(pool)
            _require(
                pool.num_ranks == 1 or served.quantization in _FOR_ANY_RANKS,
                f"model.quantization {served.quantization} is not supported for replicas of several ranks yet, which "
                f"{served.served_name!r} has; leave it out, or take fp8",
                f"{self.place_of(served)}.quantization",
            )

    def _check_models(self) -> None:
        names = [model.served_name for model in self.all_models]
        keys = [model_key(name) for name in names[1:]]
        _require(
            len(set(names)) == len(names) and len(set(keys)) == len(keys) and all(keys),
            f"models need served names that differ in more than signs and capitals; got {names}",
            "models",
        )
        for index, pool in enumerate(self.pools):
            _require(
                pool.model in ("", *names[1:]),
                f"pools: {pool.model!r} is none of `models` {names[1:]}; pools of the first, {names[0]!r}, name none",
                f"pools[{index}].model",
            )

    @property
    def all_models(self) -> tuple[ModelConfig, ...]:
        return (self.model, *self.models)

    def model_of(self, pool: PoolConfig) -> ModelConfig:
        """The one that a pool of this configuration serves."""
        return next(model for model in self.models if model.served_name == pool.model) if pool.model else self.model

    def place_of(self, model: ModelConfig) -> str:
        """Where one of the models stands in the tree."""
        return "model" if model == self.model else f"models[{self.models.index(model)}]"


def model_key(served_name: str) -> str:
    """A served name as a part of other names, which have fewer signs."""
    return re.sub(r"[^a-z0-9]+", "-", served_name.lower()).strip("-")


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplicaConfig:
    """What one replica must know to start. It listens on host at a port of the system's choosing."""

    replica_id: ReplicaId
    role: Role
    model: ModelConfig
    engine: EngineConfig
    handover: HandoverConfig
    host: str = "127.0.0.1"
    port: int = 0
    segment_prefix: str = "kvasir"
    tensor_parallel_size: int = 1
    pipeline_parallel_size: int = 1


def load_config(
    path: Path,
    defaults: Mapping[str, object],
    settle: Callable[[ClusterConfig], ClusterConfig] = lambda config: config,
) -> ClusterConfig:
    """The tree in a YAML file over defaults (a nested mapping). Raises ConfigError naming file, line and key.

    settle: what else is to be done with it; a ConfigError of that gets the line of its setting, too.
    """
    document = read_document(path)
    if not isinstance(document.tree, Mapping):
        found = "nothing" if document.tree is None else "something else"
        raise ConfigError(
            f"{document.place('')}: expected a mapping with keys such as `model` and `pools`, got {found}"
        )
    try:
        return settle(build(ClusterConfig, merge(defaults, document.tree)))
    except ConfigError as error:
        raise ConfigError(f"{document.place(error.setting)}: {error}", error.setting) from error
