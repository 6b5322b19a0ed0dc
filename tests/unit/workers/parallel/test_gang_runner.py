"""What goes over a gang's wire: one message a step, and nothing that a follower did not expect."""

from collections.abc import Callable
from dataclasses import replace

import pytest

from kvasir_kernels.compile_watch import CompileWatch
from kvasir_protocol.errors import RankLost, WireError
from kvasir_protocol.messages import FinishStep, Ping, RunStep
from kvasir_protocol.request import SamplingParams
from kvasir_protocol.wire import decode, encode
from kvasir_workers.idle_work import IdleWork, nothing_to_do
from kvasir_workers.parallel.gang_runner import Follower
from kvasir_workers.parallel.links import nowhere
from kvasir_workers.parallel.mesh import GangShape
from tests.gangs import DEMO_MODEL, QueueSender, ThreadGang, gang_config
from tests.unit.workers.fakes import make_request


def messages(tp: int, pp: int) -> list[type]:
    """What the first follower hears of an answer of four tokens to a prompt of two chunks."""
    shape = GangShape(tensor_parallel_size=tp, pipeline_parallel_size=pp)
    config = gang_config(DEMO_MODEL, shape, 40, max_num_batched_tokens=8, max_num_seqs=2)
    with ThreadGang(DEMO_MODEL, shape, config) as gang:
        engine = gang.engine()
        engine.add(make_request("r", range(5, 19), sampling=SamplingParams(max_tokens=4, seed=0, temperature=0)))
        while engine.has_work:
            engine.step()
        return [type(decode(frame)) for frame in gang.sender.frames]


@pytest.mark.parametrize(("tp", "pp"), [(2, 1), (1, 2)])
def test_each_step_is_one_message(tp: int, pp: int) -> None:
    assert messages(tp, pp) == [RunStep] * 5


def test_helpers_of_a_pipelines_leader_are_told_when_rows_have_come_back() -> None:
    assert messages(2, 2) == [RunStep, RunStep, FinishStep, FinishStep, *[RunStep, FinishStep] * 3]


def test_follower_refuses_what_is_not_for_it() -> None:
    shape = GangShape(tensor_parallel_size=2)
    with ThreadGang(DEMO_MODEL, shape, gang_config(DEMO_MODEL, shape, 4)) as gang:
        assert gang.loaded.lead is not None
        with pytest.raises(WireError, match="no use for Ping"):
            Follower(gang.loaded.lead.stage).follow(encode(Ping()))


class RestingReceiver:
    """No plan comes before all idle work is done, and then the leader is gone."""

    def receive(self, look: Callable[[], None] = nowhere, idle_work: IdleWork = nothing_to_do) -> bytes | None:
        while idle_work():
            look()
        return None


def test_follower_does_its_idle_work_while_no_plan_comes() -> None:
    shape, left = GangShape(tensor_parallel_size=2), [1, 2, 3]

    def work() -> bool:
        left.pop()
        return bool(left)

    with ThreadGang(DEMO_MODEL, shape, gang_config(DEMO_MODEL, shape, 4)) as gang:
        assert gang.loaded.lead is not None
        Follower(gang.loaded.lead.stage, idle_work=work).serve(RestingReceiver())
    assert left == []


def test_follower_tells_of_what_it_compiles_once_the_leader_says_that_all_is_warm() -> None:
    shape, told = GangShape(tensor_parallel_size=2), QueueSender(range(0))
    watch = CompileWatch(lambda name: None)
    with ThreadGang(DEMO_MODEL, shape, gang_config(DEMO_MODEL, shape, 4)) as gang:
        assert gang.loaded.lead is not None
        replace(gang.loaded.lead, followers=told).end_warm_up()
        follower = Follower(gang.loaded.lead.stage, watch=watch)
        watch.count("in the warm-up")
        for frame in told.frames:
            follower.follow(frame)
        watch.count("for somebody")
    assert watch.late == ["for somebody"]


def test_plans_are_numbered_whoever_of_the_leaders_engines_makes_them() -> None:
    shape = GangShape(tensor_parallel_size=2, pipeline_parallel_size=2)
    with ThreadGang(DEMO_MODEL, shape, gang_config(DEMO_MODEL, shape, 40)) as gang:
        for name in ("canary", "r"):
            engine = gang.engine()
            engine.add(make_request(name, range(5, 9), sampling=SamplingParams(max_tokens=2, seed=0, temperature=0)))
            while engine.has_work:
                engine.step()
        plans = [decode(frame) for frame in gang.sender.frames]
    assert [plan.number for plan in plans if isinstance(plan, RunStep | FinishStep)] == list(range(8))


@pytest.mark.parametrize(
    ("told", "complaint"),
    [((1,), "was told plan 1 when plan 0 was due"), ((0, 0), "was told plan 0 when plan 1 was due")],
    ids=["lost", "repeated"],
)
def test_follower_computes_nothing_after_a_plan_that_was_lost_or_repeated(
    told: tuple[int, ...], complaint: str
) -> None:
    shape = GangShape(pipeline_parallel_size=2)
    gang = ThreadGang(DEMO_MODEL, shape, gang_config(DEMO_MODEL, shape, 4))
    for number in told:
        gang.sender.send(encode(FinishStep(number=number)))
    failure = gang.end()[1]
    assert isinstance(failure, RankLost)
    assert complaint in str(failure)
    assert failure.ranks == (0,)
