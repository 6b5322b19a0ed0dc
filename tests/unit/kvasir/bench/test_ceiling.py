import pytest

from kvasir.bench.ceiling import Ceiling, measure_ceiling
from kvasir.bench.stub_server import HEAD, stub_server
from kvasir.bench.workloads import Conversation, Turn
from kvasir_protocol.errors import ServiceUnavailable

pytestmark = pytest.mark.anyio

EXAMPLE = Conversation((Turn("why?", 1, 2000),))


async def test_a_stub_server_gives_figures_of_every_kind():
    async with stub_server() as url:
        ceiling = await measure_ceiling(url, EXAMPLE, 2, is_chat=False)
    assert min(ceiling.requests_per_s, ceiling.tokens_per_s, ceiling.added_latency_ms) > 0


async def test_a_stub_server_that_fails_is_no_ceiling():
    async def broken(body):
        yield HEAD
        raise ConnectionError

    async with stub_server(broken) as url:
        with pytest.raises(ServiceUnavailable, match="the stub server failed: broken off"):
            await measure_ceiling(url, EXAMPLE, 1, is_chat=False)


async def test_the_nearer_of_both_limits_counts():
    ceiling = Ceiling(requests_per_s=100.0, tokens_per_s=1000.0, added_latency_ms=1.0)
    assert ceiling.share(request_throughput=50.0, output_throughput=100.0) == 0.5
    assert ceiling.share(request_throughput=1.0, output_throughput=900.0) == 0.9
