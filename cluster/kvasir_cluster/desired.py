"""What a controller must not forget when it dies: what is wanted, and what its gangs are. Pure."""

import dataclasses
import functools
import hashlib
from collections.abc import Iterable
from dataclasses import dataclass

import msgpack

from kvasir_cluster.plan import Slot, parse_replica
from kvasir_protocol.config import ClusterConfig, ModelConfig, PoolConfig, model_key
from kvasir_protocol.ids import ReplicaId
from kvasir_protocol.view import ReplicaAddress, Role
from kvasir_protocol.wire import from_plain, to_plain


@dataclass(frozen=True, slots=True, kw_only=True)
class GangRecord:
    """What one gang was built as, and the slot that it holds now."""

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
        moved = dataclasses.replace(self.record(replica_id), slot=slot)
        return dataclasses.replace(self, gangs=(*self._others(replica_id), moved))

    def without_gang(self, replica_id: ReplicaId) -> "Desired":
        return dataclasses.replace(self, gangs=self._others(replica_id))

    def shown(self, addresses: Iterable[ReplicaAddress]) -> tuple[ReplicaAddress, ...]:
        """As routers may know them: the first model's by the name that it has now, which is another than at their
        start once it was renamed; those of a model that is gone not at all."""
        keys = {model_key(pool.model) for pool in self.resolved.pools}
        slots = [(address, self.record(address.replica_id).slot) for address in addresses]
        first = self.resolved.model.served_name
        return tuple(
            address if slot.model else dataclasses.replace(address, model=first)
            for address, slot in slots
            if slot.model in keys
        )

    def record(self, replica_id: ReplicaId) -> GangRecord:
        return next(record for record in self.gangs if record.replica_id == replica_id)

    def _others(self, replica_id: ReplicaId) -> tuple[GangRecord, ...]:
        return tuple(record for record in self.gangs if record.replica_id != replica_id)


def _pool_of(slot: Slot, config: ClusterConfig) -> PoolConfig:
    return next(pool for pool in config.pools if (pool.role, model_key(pool.model)) == (slot.role, slot.model))


@functools.lru_cache(maxsize=64)
def fingerprint(config: ClusterConfig, pool: PoolConfig) -> str:
    """The same for two replicas if, and only if, one could stand in for the other; their role makes no difference."""
    form = dataclasses.replace(pool, role="mixed", replicas=1)
    parts = [to_plain(part) for part in (config.model_of(pool), config.engine, config.handover, form)]
    return hashlib.sha256(msgpack.packb(parts)).hexdigest()[:16]
