"""The load of `kvasir bench serve` on a whole router over fake replicas."""

import asyncio
from functools import partial

import pytest

from kvasir.bench.arrivals import Traffic
from kvasir.bench.client import Target
from kvasir.bench.http_client import Origin
from kvasir.bench.metrics import Wanted
from kvasir.bench.serve import ServeBench, make_warm_up, result_of
from kvasir.bench.workloads import Lengths, multi_turn, random_prompts
from kvasir.cli.bench_workload import find_text_source
from kvasir.cli.server_api import ServerApi
from kvasir_protocol.errors import ServiceUnavailable
from kvasir_protocol.ids import RequestId
from kvasir_protocol.messages import Rejected, Submit
from tests.fakes.serving import MODEL_NAME, serving
from tests.integration.router.conftest import TEXT

pytestmark = pytest.mark.anyio


class Nobody:
    def advance(self, record):
        pass


async def measure(server, make_conversations, num_warmups=1, **options):
    """Prompts are counted by the router's own /tokenize."""
    api = ServerApi(server.url, None)
    source = await asyncio.to_thread(find_text_source, None, partial(api.count_tokens, MODEL_NAME))
    conversations = await asyncio.to_thread(make_conversations, source)
    bench = ServeBench(
        target=Target(origin=Origin.from_url(server.url), model=MODEL_NAME, **options),
        conversations=conversations,
        traffic=Traffic(),
        max_concurrency=3,
        warm_up=await asyncio.to_thread(make_warm_up, conversations, num_warmups, source),
    )
    return result_of(await bench.run(asyncio.Event(), Nobody()), Wanted())


async def test_prompts_have_the_length_that_the_router_counts(pools, make_settings, tokenizer):
    def make(source):
        return random_prompts(5, Lengths(input_len=12, output_len=200), source, 0)

    async with serving(make_settings(), *pools) as server:
        result = await measure(server, make)
    assert (result["completed"], result["failed"]) == (5, 0)
    assert result["input_lens"] == [12] * 5
    assert result["generated_texts"] == [TEXT] * 5
    assert result["output_lens"] == [len(tokenizer.encode(TEXT).ids) + 1] * 5
    assert result["output_tokens_counted_by"] == {"usage": 5}
    submitted = {len(message.request.prompt_token_ids) for message in pools[0].got(Submit)}
    assert submitted == {12}


async def test_a_conversation_carries_its_answers_along(pools, make_settings):
    def make(source):
        return multi_turn(1, 2, Lengths(input_len=4, output_len=100), source, 0)

    async with serving(make_settings(), *pools) as server:
        result = await measure(server, make, is_chat=True)
    assert result["generated_texts"] == [TEXT, TEXT]
    assert result["input_lens"][1] > result["input_lens"][0] + len(TEXT) // 4


async def test_requests_that_the_replicas_refuse_are_failures(pools, make_settings):
    def make(source):
        return random_prompts(3, Lengths(input_len=4, output_len=4), source, 0)

    for pool in pools:
        pool.faults.rejection = Rejected(request_id=RequestId("any"), message="no thanks", is_invalid=True)
    async with serving(make_settings(), *pools) as server:
        result = await measure(server, make, num_warmups=0)
        assert (result["completed"], result["failures"]) == (0, {"HTTP 400": 3})
        assert result["errors"] == ["HTTP 400: no thanks"] * 3
        with pytest.raises(ServiceUnavailable, match="a warm-up request failed: HTTP 400"):
            await measure(server, make, num_warmups=1)
