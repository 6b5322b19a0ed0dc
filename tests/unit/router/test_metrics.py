import pytest
from prometheus_client import CollectorRegistry, generate_latest

from kvasir_protocol import metrics as names
from kvasir_router.metrics import FrontDoorMetrics, MetricFamilies, ReplicaCollector, StreamTimes
from tests.fakes.replica import FakeReplica
from tests.fakes.serving import SECRET, listening, running_fleet, until_live, view_of


def sample(registry: CollectorRegistry, name: str, **labels: str) -> float | None:
    return registry.get_sample_value(name, {"model_name": "m", **labels})


def test_stream_is_observed_from_its_first_token_to_its_end() -> None:
    registry = CollectorRegistry()
    times = StreamTimes(FrontDoorMetrics(MetricFamilies(registry), "m"), started_at=10.0, num_prompt_tokens=7)
    times.saw_tokens(1, 10.5)
    times.saw_tokens(0, 10.6)
    times.saw_tokens(2, 10.9)
    times.finished("stop", 11.0)
    assert sample(registry, f"{names.TIME_TO_FIRST_TOKEN}_sum") == pytest.approx(0.5)
    assert sample(registry, f"{names.INTER_TOKEN_LATENCY}_sum") == pytest.approx(0.2)
    assert sample(registry, f"{names.E2E_REQUEST_LATENCY}_sum") == pytest.approx(1.0)
    assert sample(registry, f"{names.REQUEST_PROMPT_TOKENS}_sum") == 7
    assert sample(registry, f"{names.REQUEST_GENERATION_TOKENS}_sum") == 3
    assert sample(registry, f"{names.REQUEST_SUCCESS}_total", finished_reason="stop") == 1


@pytest.mark.anyio
async def test_replicas_are_rendered_as_they_last_told() -> None:
    up, down = (FakeReplica(f"decode-{number}", "decode", SECRET, answer=[]) for number in range(2))
    up.num_used_pages = 25
    async with listening([up, down]), running_fleet() as fleet:
        fleet.apply(view_of(up, down))
        await until_live(fleet, 2)
        await down.stop()
        await until_live(fleet, 1)
        while fleet.link(up.replica_id).stats is None:
            await up.until(lambda replica: bool(replica.received))
        text = generate_latest_of(ReplicaCollector({"m": fleet}))
    labels = '{engine="%s",model_name="m",role="decode"}'
    assert f"{names.REPLICA_UP}{labels % 'decode-0'} 1.0" in text
    assert f"{names.REPLICA_UP}{labels % 'decode-1'} 0.0" in text
    assert f"{names.KV_CACHE_USAGE}{labels % 'decode-0'} 0.25" in text
    assert f"{names.KV_CACHE_USAGE}{labels % 'decode-1'}" not in text
    assert f"{names.GENERATION_TOKENS}_total{labels % 'decode-0'} 0.0" in text
    assert 'direction="pushed",engine="decode-0",model_name="m",role="decode",transport="tcp"} 7.0' in text


def generate_latest_of(collector: ReplicaCollector) -> str:
    registry = CollectorRegistry()
    registry.register(collector)
    return generate_latest(registry).decode()
