import dataclasses

import pytest

from kvasir_cluster.pools import Hardware, num_ranks, resolve, resource_of
from kvasir_protocol.config import ClusterConfig, EngineConfig, ModelConfig, PoolConfig
from kvasir_protocol.errors import ConfigError

CONFIG = ClusterConfig(model=ModelConfig(path="m", served_name="m"))


def with_engine(**changes):
    return dataclasses.replace(CONFIG, engine=EngineConfig(**changes))


def test_ranks_of_all_pools_are_counted():
    assert num_ranks((PoolConfig(role="prefill", replicas=2), PoolConfig(role="decode", replicas=3))) == 5


def test_cores_are_shared_evenly_among_the_replicas():
    assert resolve(CONFIG, Hardware(num_cores=9, num_gpus=0)).engine.num_threads == 4


def test_each_replica_has_a_thread_even_when_cores_are_short():
    assert resolve(CONFIG, Hardware(num_cores=1, num_gpus=0)).engine.num_threads == 1


def test_more_replicas_than_a_host_could_bear_are_refused_with_the_most_it_takes():
    pools = (PoolConfig(role="mixed", replicas=33),)
    with pytest.raises(ConfigError, match="33 processes, but this host of 2 cores takes 32 at most"):
        resolve(dataclasses.replace(CONFIG, pools=pools), Hardware(num_cores=2, num_gpus=0))


def test_a_number_of_threads_that_was_set_stays():
    assert resolve(with_engine(num_threads=7), Hardware(num_cores=2, num_gpus=0)).engine.num_threads == 7


@pytest.mark.parametrize(("num_gpus", "device", "resource"), [(0, "cpu", "CPU"), (2, "cuda", "GPU")])
def test_device_auto_is_the_gpu_where_there_is_one(num_gpus, device, resource):
    resolved = resolve(CONFIG, Hardware(num_cores=2, num_gpus=num_gpus))
    assert resolved.engine.device == device
    assert resource_of(resolved) == resource


def test_cuda_without_a_gpu_is_refused_with_the_way_out():
    with pytest.raises(ConfigError, match="set it to cpu"):
        resolve(with_engine(device="cuda"), Hardware(num_cores=2, num_gpus=0))


def test_cpu_is_kept_on_a_host_with_gpus():
    assert resolve(with_engine(device="cpu"), Hardware(num_cores=2, num_gpus=8)).engine.device == "cpu"
