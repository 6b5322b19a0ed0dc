"""What a controller must not forget when it dies: what is wanted, and what its gangs are. Pure."""

import dataclasses
import functools
import hashlib
from collections.abc import Iterable
from dataclasses import dataclass

import msgpack

from kvasir_cluster.plan import Slot, parse_replica
from kvasir_cluster.renames import check_same_models, find_renames
from kvasir_protocol.config import ClusterConfig, ModelConfig, PoolConfig, model_key
from kvasir_protocol.ids import ReplicaId
from kvasir_protocol.view import ReplicaAddress, Role
from kvasir_protocol.wire import from_plain, to_plain


@dataclass(frozen=True, slots=True, kw_only=True)
class GangRecord:
    """What one gang was built as, and the slot that it holds now.

    pool: the one of its slot, whose form is that in which it was built. model: as it was called when it was built.
    """

    replica_id: ReplicaId
    slot: Slot
    pool: PoolConfig
    model: ModelConfig
    fingerprint: str

    @property
    def reassigned(self) -> Slot | None:
        """Its slot, if that is not the one in its id."""
        return self.slot if self.slot != parse_replica(self.replica_id)[0] else None


@dataclass(frozen=True, slots=True, kw_only=True)
class Desired:
    """config: as it was asked for; resolved: the same with its "auto" and None settled for the hosts of that moment.

    view_port: where routers find the controller, 0 before its first start. is_ending: all of it is to be taken away.
    """

    config: ClusterConfig
    resolved: ClusterConfig
    gangs: tuple[GangRecord, ...] = ()
    view_port: int = 0
    is_ending: bool = False

    def pack(self) -> bytes:
        """As bytes, for `unpack`."""
        packed: bytes = msgpack.packb(to_plain(self))
        return packed

    @classmethod
    def unpack(cls, packed: bytes) -> "Desired":
        return from_plain(cls, msgpack.unpackb(packed))

    def fits(self, record: GangRecord) -> frozenset[Role]:
        """Roles in whose pools, of its model, a gang built like this may serve as it is."""
        pools = (pool for pool in self.config.pools if pool.model == record.pool.model)
        return frozenset(pool.role for pool in pools if fingerprint(self.config, pool) == record.fingerprint)

    def wanting(self, config: ClusterConfig, resolved: ClusterConfig) -> "Desired":
        """Something else is wanted; gangs of a model that only gets another name stay its gangs.

        Raises ConfigError where a name would go to another model.
        """
        check_same_models(self.config, config)
        renames = find_renames(self.config, config)
        gangs = tuple(_renamed(record, renames) for record in self.gangs)
        return dataclasses.replace(self, config=config, resolved=resolved, gangs=gangs)

    def with_gang(self, replica_id: ReplicaId, slot: Slot) -> "Desired":
        """A gang is about to be built for a slot, as its pool is wanted now."""
        pool = _pool_of(slot, self.resolved)
        record = GangRecord(
            replica_id=replica_id,
            slot=slot,
            pool=pool,
            model=self.resolved.model_of(pool),
            fingerprint=fingerprint(self.config, _pool_of(slot, self.config)),
        )
        return dataclasses.replace(self, gangs=(*self._others(replica_id), record))

    def with_slot(self, replica_id: ReplicaId, slot: Slot) -> "Desired":
        """A gang holds another slot from now on."""
        moved = dataclasses.replace(self.record(replica_id), slot=slot, pool=_pool_of(slot, self.resolved))
        return dataclasses.replace(self, gangs=(*self._others(replica_id), moved))

    def without_gang(self, replica_id: ReplicaId) -> "Desired":
        return dataclasses.replace(self, gangs=self._others(replica_id))

    def shown(self, addresses: Iterable[ReplicaAddress]) -> tuple[ReplicaAddress, ...]:
        """As routers may know them: by the name that their model has now; those of a model that is gone not at all."""
        names = {pool.model: self.resolved.model_of(pool).served_name for pool in self.resolved.pools}
        known = [(address, self.record(address.replica_id).pool.model) for address in addresses]
        return tuple(dataclasses.replace(address, model=names[model]) for address, model in known if model in names)

    def record(self, replica_id: ReplicaId) -> GangRecord:
        return next(record for record in self.gangs if record.replica_id == replica_id)

    def _others(self, replica_id: ReplicaId) -> tuple[GangRecord, ...]:
        return tuple(record for record in self.gangs if record.replica_id != replica_id)


def _renamed(record: GangRecord, renames: dict[str, str]) -> GangRecord:
    name = renames.get(record.pool.model, record.pool.model)
    return dataclasses.replace(
        record,
        slot=dataclasses.replace(record.slot, model=model_key(name)),
        pool=dataclasses.replace(record.pool, model=name),
    )


def _pool_of(slot: Slot, config: ClusterConfig) -> PoolConfig:
    return next(pool for pool in config.pools if (pool.role, model_key(pool.model)) == (slot.role, slot.model))


@functools.lru_cache(maxsize=64)
def fingerprint(config: ClusterConfig, pool: PoolConfig) -> str:
    """The same for two replicas if, and only if, one could stand in for the other; their role makes no difference, nor
    what their model is called."""
    form = dataclasses.replace(pool, role="mixed", replicas=1, model="")
    model = dataclasses.replace(config.model_of(pool), served_name="")
    parts = [to_plain(part) for part in (model, config.engine, config.handover, form)]
    return hashlib.sha256(msgpack.packb(parts)).hexdigest()[:16]
