"""What `kvasir up` and `kvasir down` are about to do, for a person. Pure."""

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

from kvasir_cluster.desired import fingerprint
from kvasir_cluster.renames import find_renames, rename_models
from kvasir_protocol.config import ClusterConfig, PoolConfig

ChangeKind = Literal["create", "change", "remove"]

REPLACED = "its replicas are replaced, one at a time"


@dataclass(frozen=True, slots=True)
class Change:
    kind: ChangeKind
    what: str


def find_changes(present: ClusterConfig | None, wanted: ClusterConfig | None) -> tuple[Change, ...]:
    """From what there is (None: nothing) to what is wanted; empty if they are the same."""
    return tuple(_changes(present, wanted))


def _changes(present: ClusterConfig | None, wanted: ClusterConfig | None) -> Iterator[Change]:
    if present is None and wanted is not None:
        yield Change("create", f"controller of {wanted.name!r}, on the head")
    if present is not None and wanted is not None:
        renames = find_renames(present, wanted)
        yield from _name_changes(present, wanted, renames)
        present = rename_models(present, renames)
    yield from _pool_changes(present, wanted)
    yield from _setting_changes(present, wanted)
    yield from _router_changes(present, wanted)
    if wanted is None and present is not None:
        yield Change("remove", f"controller of {present.name!r}")


def _name_changes(present: ClusterConfig, wanted: ClusterConfig, renames: dict[str, str]) -> Iterator[Change]:
    first = (present.model.served_name, wanted.model.served_name)
    for old, new in (first, *renames.items()):
        if old != new:
            yield Change("change", f"model {old}: its name is {new} from now on, its replicas stay")


def _pool_changes(present: ClusterConfig | None, wanted: ClusterConfig | None) -> Iterator[Change]:
    there, wished = _pools(present), _pools(wanted)
    spare = {
        name: pool.replicas - wished[name].replicas if name in wished else pool.replicas for name, pool in there.items()
    }
    for name, pool in wished.items():
        num_more = pool.replicas - (there[name].replicas if name in there else 0)
        movers = _movers(present, wanted, pool, num_more, spare)
        if name not in there:
            yield Change("create", f"pool {name}: {describe_pool(pool)}{movers}")
        elif there[name] != pool:
            yield Change("change", f"pool {name}: {describe_pool(there[name])} -> {describe_pool(pool)}{movers}")
    for name, pool in there.items():
        if name not in wished:
            yield Change("remove", f"pool {name}: {describe_pool(pool)}")


def _movers(
    present: ClusterConfig | None, wanted: ClusterConfig | None, goal: PoolConfig, num_more: int, spare: dict[str, int]
) -> str:
    """In words, which replicas of other pools will take the role of this one; they are taken out of spare."""
    if present is None or wanted is None:
        return ""
    form = fingerprint(wanted, goal)
    movers = []
    for other, pool in _pools(present).items():
        count = min(spare[other], num_more)
        may_move = pool.model == goal.model and other != goal.name
        if may_move and count > 0 and fingerprint(present, pool) == form:
            spare[other] -= count
            num_more -= count
            movers.append(f"{count} from {other}, with the weights they have")
    return f" ({'; '.join(movers)})" if movers else ""


def _setting_changes(present: ClusterConfig | None, wanted: ClusterConfig | None) -> Iterator[Change]:
    if present is None or wanted is None:
        return
    halls = [(hall, getattr(present, hall), getattr(wanted, hall)) for hall in ("model", "engine", "handover")]
    later = {model.served_name: model for model in wanted.models}
    both = [model for model in present.models if model.served_name in later]
    halls += [(f"model {model.served_name}", model, later[model.served_name]) for model in both]
    for hall, before, after in halls:
        for name, old, new in _differences(before, after):
            if name == "served_name":
                continue  # told above, and no reason to replace anything
            yield Change("change", f"{hall}.{name}: {old} -> {new} ({REPLACED})")


def _router_changes(present: ClusterConfig | None, wanted: ClusterConfig | None) -> Iterator[Change]:
    if wanted is not None and present is None:
        yield Change("create", f"router {_describe_routers(wanted)}")
    elif present is not None and wanted is None:
        yield Change("remove", f"router {_describe_routers(present)}")
    elif present is not None and wanted is not None:
        for name, old, new in _differences(present.router, wanted.router):
            said = "other keys" if name == "api_keys" else f"{old} -> {new}"
            yield Change("change", f"router.{name}: {said}")


def _differences(before: Any, after: Any) -> Iterator[tuple[str, object, object]]:
    for item in dataclasses.fields(before):
        old, new = getattr(before, item.name), getattr(after, item.name)
        if old != new:
            yield item.name, old, new


def _pools(config: ClusterConfig | None) -> dict[str, PoolConfig]:
    return {pool.name: pool for pool in config.pools} if config is not None else {}


def describe_pool(pool: PoolConfig) -> str:
    """In a few words: how many replicas of what form."""
    words = [f"{pool.replicas} replica{'s' if pool.replicas > 1 else ''}"]
    if pool.tensor_parallel_size > 1:
        words.append(f"tensor parallel over {pool.tensor_parallel_size}")
    if pool.pipeline_parallel_size > 1:
        words.append(f"pipeline of {pool.pipeline_parallel_size}")
    if pool.node_resource is not None:
        words.append(f"on hosts with {pool.node_resource}")
    return ", ".join(words)


def _describe_routers(config: ClusterConfig) -> str:
    where = "on the head" if config.router.placement == "head" else "on every host"
    return f"{where}, port {config.router.port}"
