import dataclasses

from kvasir.cli.examples import describe
from kvasir_protocol.config import ClusterConfig, EngineConfig, ModelConfig, PoolConfig

CONFIG = ClusterConfig(
    model=ModelConfig(path="/models/m", served_name="m"),
    engine=EngineConfig(device="cpu", num_threads=1),
    pools=(PoolConfig(role="mixed", replicas=2),),
)


def test_a_server_says_what_it_serves_and_with_what():
    assert describe(CONFIG) == "serving m from /models/m (2 mixed; cpu, 1 thread each)"


def test_every_model_is_named():
    second, pool = ModelConfig(path="/models/s", served_name="s"), PoolConfig(role="mixed", model="s")
    both = dataclasses.replace(CONFIG, models=(second,), pools=(*CONFIG.pools, pool))
    assert describe(both).startswith("serving m from /models/m, s from /models/s (2 mixed + 1 s/mixed; ")
