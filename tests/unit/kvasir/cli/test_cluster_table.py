import io

from rich.console import Console

from kvasir.cli.cluster_table import Snapshot, gang_table, headline, host_table, router_table
from kvasir_cluster.hosts import HEAD_RESOURCE, Host
from kvasir_cluster.report import ClusterReport, GangReport, Progress
from kvasir_cluster.router_host import RouterState
from kvasir_protocol.config import ClusterConfig, ModelConfig
from tests.unit.kvasir.cli.test_status import answer

HOSTS = (
    Host(node_id="a", address="10.0.0.1", name="h1", offers={HEAD_RESOURCE: 1.0}),
    Host(node_id="b", address="10.0.0.2", name="h2", offers={"CPU": 4.0, "GPU": 2.0}),
    Host(node_id="c", address="10.0.0.3", name="h3", offers={"CPU": 4.0}),
)


def gang(replica_id="decode-0", pool="decode", state="ready", hosts=("b",), is_outdated=False):
    return GangReport(replica_id=replica_id, pool=pool, state=state, is_outdated=is_outdated, hosts=hosts)


def snapshot(*gangs, taken_at_s=0.0, status=None, routers=(), fatal=None):
    progress = Progress(process_id=1, phase="ready", gangs=(), news=(), routers=routers, fatal=fatal)
    wish = ClusterConfig(model=ModelConfig(path="/m", served_name="m"))
    report = ClusterReport(instance="x", wish=wish, progress=progress, gangs=gangs)
    return Snapshot(taken_at_s=taken_at_s, report=report, hosts=HOSTS, status=status)


def rows(table):
    output = io.StringIO()
    Console(file=output, width=160).print(table)
    return [line.split() for line in output.getvalue().splitlines()[1:]]


def test_a_row_tells_pool_state_host_load_and_rates():
    before = snapshot(gang(), taken_at_s=1.0, status=answer(10.0, generated=100, computed=1000))
    now = snapshot(gang(), taken_at_s=3.0, status=answer(12.0, generated=150, computed=1500))
    (row,) = rows(gang_table(before, now))
    assert row == ["decode-0", "decode", "ready", "h2", "3", "1", "7/100", "250.0", "25.0", "75", "%", "5", "MiB"]


def test_ranks_are_counted_by_host():
    (row,) = rows(gang_table(snapshot(), snapshot(gang(hosts=("b", "b", "c", "c")))))
    assert " ".join(row).startswith("decode-0 decode ready 2 on h2, 2 on h3 -")


def test_a_replica_without_a_place_or_a_router_to_ask_is_still_shown():
    (row,) = rows(gang_table(snapshot(), snapshot(gang(state="starting", hosts=()))))
    assert row == ["decode-0", "decode", "starting", "-", *["-"] * 7]


def test_prefill_stands_first_and_outdated_replicas_are_marked():
    now = snapshot(gang(), gang("prefill-0", "prefill", is_outdated=True))
    first, second = rows(gang_table(snapshot(), now))
    assert first[:4] == ["prefill-0", "prefill", "ready,", "outdated"]
    assert second[0] == "decode-0"


def test_routers_tell_where_they_answer_or_why_not():
    routers = (
        ("10.0.0.1", RouterState(url="http://10.0.0.1:8000", num_live=2)),
        ("10.0.0.2", RouterState(url="", num_live=None, failure="port in use")),
        ("10.0.0.3", None),
    )
    assert rows(router_table(snapshot(routers=routers))) == [
        ["10.0.0.1", "http://10.0.0.1:8000", "up", "2"],
        ["10.0.0.2", "-", "port", "in", "use", "-"],
        ["10.0.0.3", "-", "starting", "-"],
    ]


def test_hosts_tell_what_they_offer_and_hold():
    assert rows(host_table(snapshot(gang(hosts=("b", "b"))))) == [
        ["h1", "10.0.0.1", "head", "0", "0", "0"],
        ["h2", "10.0.0.2", "worker", "4", "2", "2"],
        ["h3", "10.0.0.3", "worker", "4", "0", "0"],
    ]


def test_the_headline_tells_what_is_wrong():
    assert headline(snapshot()) == "main: m, ready"
    assert headline(snapshot(fatal="no such folder")) == "main: m, ready; no such folder"
