"""What a gang is made of, by what the controller was told and what is wanted now."""

from kvasir_cluster.desired import Desired
from kvasir_cluster.gang import GangSpec
from kvasir_cluster.pools import resource_of
from kvasir_cluster.spec import ControllerSpec
from kvasir_protocol.config import ReplicaConfig
from kvasir_protocol.ids import ReplicaId


def recipe_of(replica_id: ReplicaId, spec: ControllerSpec, desired: Desired) -> GangSpec:
    """For a gang that desired has a record of."""
    config, record = desired.resolved, desired.record(replica_id)
    replica = ReplicaConfig(
        replica_id=replica_id,
        role=record.slot.role,
        model=record.model,
        engine=config.engine,
        handover=config.handover,
        host=spec.replica_host,
        segment_prefix=spec.name,
        tensor_parallel_size=record.pool.tensor_parallel_size,
        pipeline_parallel_size=record.pool.pipeline_parallel_size,
    )
    return GangSpec(
        replica=replica,
        pool=record.pool,
        resource=resource_of(config),
        secret=spec.secret,
        build_rank=spec.build_rank,
        timings=spec.timings,
    )
