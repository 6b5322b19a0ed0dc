import pytest

from kvasir_protocol.events import EngineCounters, HandoverCounters, ReplicaStats
from kvasir_protocol.ids import ReplicaId
from kvasir_protocol.view import ReplicaAddress
from kvasir_router.routing.load import InflightCounter, ReplicaLoad, replica_load

NAME = ReplicaId("decode-0")
ADDRESS = ReplicaAddress(replica_id=NAME, role="decode", endpoint="tcp://127.0.0.1:1")


def test_stream_is_counted_while_it_runs() -> None:
    counter = InflightCounter()
    with counter.counted(NAME), counter.counted(NAME):
        assert counter[NAME] == 2
    assert counter[NAME] == 0


def test_stream_that_fails_is_no_longer_counted() -> None:
    counter = InflightCounter()
    with pytest.raises(ZeroDivisionError), counter.counted(NAME):
        raise ZeroDivisionError
    assert counter[NAME] == 0


def test_prompt_is_counted_until_it_is_computed() -> None:
    counter = InflightCounter()
    with counter.prefilling(NAME, 100):
        with counter.prefilling(NAME, 11):
            assert counter.prefill_line(NAME) == (100, 11)
        assert counter.prefill_line(NAME) == (100,)
    assert counter.prefill_line(NAME) == ()


def test_stream_whose_prompt_is_computed_elsewhere_does_not_wait_for_steps() -> None:
    counter = InflightCounter()
    with counter.counted(NAME), counter.counted(NAME), counter.awaited(NAME):
        load = replica_load(ADDRESS, counter, None)
        assert (load.num_streams, load.num_decoding) == (2, 1)
    assert counter.num_awaited(NAME) == 0


TOLD = ReplicaStats(
    replica_id=NAME,
    num_running=2,
    num_waiting=1,
    num_pages=200,
    num_used_pages=50,
    engine=EngineCounters(),
    handover=HandoverCounters(),
    resident_bytes=0,
)


def test_streams_of_other_routers_wait_for_steps_whatever_this_one_awaits() -> None:
    counter = InflightCounter()
    with counter.counted(NAME), counter.awaited(NAME):
        assert replica_load(ADDRESS, counter, TOLD).num_decoding == 3


def test_load_joins_own_count_and_what_the_replica_tells() -> None:
    counter = InflightCounter()
    with counter.counted(NAME), counter.prefilling(NAME, 7):
        joined = replica_load(ADDRESS, counter, TOLD)
    assert joined == ReplicaLoad(
        replica_id=NAME, role="decode", num_inflight=1, num_requests=3, page_usage=0.25, prefill_line=(7,)
    )


def test_replica_that_has_told_nothing_counts_as_idle() -> None:
    assert replica_load(ADDRESS, InflightCounter(), None).num_requests == 0
