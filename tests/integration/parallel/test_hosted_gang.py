"""A replica whose other ranks were put somewhere by somebody else: here, into threads of this process."""

from concurrent.futures import Future, ThreadPoolExecutor
from threading import Event

import pytest
import zmq

from kvasir_protocol.config import EngineConfig, HandoverConfig, ModelConfig, ReplicaConfig
from kvasir_protocol.errors import ConfigError, RankLost
from kvasir_protocol.ids import ReplicaId, RequestId
from kvasir_protocol.messages import Rejected, Reserve, Submit, Tokens
from kvasir_protocol.request import GenerationRequest, SamplingParams
from kvasir_protocol.sockets import bind_server, start_gatekeeper
from kvasir_protocol.view import Role
from kvasir_workers.parallel.hosted_gang import GangAddress, HostedGang, PublicReceiver, PublicSender
from kvasir_workers.parallel.hosted_rank import HostedRank
from kvasir_workers.replica import Replica
from tests.gangs import DEMO_MODEL
from tests.integration.engine.conftest import Model, run
from tests.wire_client import WireClient

SECRET = b"s" * 32
ASKED = GenerationRequest(
    request_id=RequestId("r"),
    prompt_token_ids=tuple(range(5, 40)),
    sampling=SamplingParams(max_tokens=8, seed=0, temperature=0, ignore_eos=True),
)


def config(role: Role = "mixed", tp: int = 2, pp: int = 1) -> ReplicaConfig:
    return ReplicaConfig(
        replica_id=ReplicaId("mixed-0"),
        role=role,
        model=ModelConfig(path=str(DEMO_MODEL), served_name="m"),
        engine=EngineConfig(device="cpu", kv_cache_bytes=8 * 2**20, num_threads=1),
        handover=HandoverConfig(),
        tensor_parallel_size=tp,
        pipeline_parallel_size=pp,
    )


@pytest.mark.parametrize(("tp", "pp"), [(2, 1), (1, 2)])
def test_replica_answers_as_one_rank_does_and_hands_no_pages_over(tp: int, pp: int) -> None:
    address: Future[str] = Future()
    settings = config(tp=tp, pp=pp)
    with ThreadPoolExecutor(1) as pool:
        loading = pool.submit(lambda: HostedRank(settings, SECRET, 1, address.result()))
        replica = Replica(settings, SECRET, lambda: HostedGang(settings, SECRET, address.set_result))
        follower = loading.result()
    follower.start()
    replica.start()
    client = WireClient(replica.endpoint, SECRET)
    client.send(Submit(request=ASKED))
    said: list[int] = []
    while len(said) < 8:
        said += [token for output in client.expect(Tokens).outputs for token in output.token_ids]
    (expected,) = run(Model(DEMO_MODEL).engine(overlap=False), [ASKED])
    assert said == expected.token_ids
    client.send(Reserve(request=ASKED, deadline_s=5.0))
    assert "several ranks are not handed over yet" in client.expect(Rejected).message
    client.close()
    assert (replica.failure(), follower.failure()) == (None, None)
    assert replica.stop()
    follower.stop()


def test_replica_of_one_role_can_not_have_ranks_on_other_hosts_yet() -> None:
    settings = config("decode")
    with pytest.raises(ConfigError, match="decode replica can't have several ranks yet"):
        Replica(settings, SECRET, lambda: HostedGang(settings, SECRET, Future[str]().set_result))


def test_follower_that_does_not_connect_is_named() -> None:
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    gatekeeper = start_gatekeeper(context, SECRET)
    socket, endpoint = bind_server(context, SECRET, "127.0.0.1", 0)
    receiver = PublicReceiver(GangAddress(host="127.0.0.1", port=1, plans=endpoint), SECRET, 1, Event())
    assert socket.poll(20_000)
    with pytest.raises(RankLost, match=r"ranks \(2,\) did not connect"):
        PublicSender(socket, 3, start_s=0.2).send(b"plan")
    receiver.close()
    gatekeeper.stop()
    context.destroy(linger=0)


def test_address_comes_out_of_its_text_as_it_went_in() -> None:
    address = GangAddress(host="10.0.0.1", port=7, plans="tcp://10.0.0.1:8")
    assert GangAddress.from_text(address.to_text()) == address
