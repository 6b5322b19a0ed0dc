import dataclasses

import pytest

from kvasir_cluster.doctor import judge_hosts, judge_reach
from kvasir_cluster.host_facts import HostFacts, find_facts

WELL = HostFacts(
    name="h1",
    address="10.0.0.1",
    versions=(("python", "3.11.7"), ("ray", "2.60.0")),
    interfaces=(("lo", "127.0.0.1"), ("eth0", "10.0.0.1")),
    shared_memory_bytes=2**33,
    free_shared_memory_bytes=2**33,
    max_open_files=65536,
    num_gpus=0,
)
OTHER = dataclasses.replace(WELL, name="h2", address="10.0.0.2", interfaces=(("eth1", "10.0.0.2"),))


def wrong(*hosts):
    return [finding for finding in judge_hosts(hosts) if not finding.is_well]


def but(**changes):
    return dataclasses.replace(OTHER, **changes)


def test_hosts_that_are_alike_have_nothing_to_put_right():
    assert wrong(WELL, OTHER) == []


def test_each_thing_that_is_well_is_told_too():
    assert [finding.what for finding in judge_hosts([WELL])] == [
        "python 3.11.7 on every host",
        "ray 2.60.0 on every host",
        "h1 is 10.0.0.1, on eth0",
        "h1 has 8.0 GiB of shared memory, 8.0 GiB free",
        "h1 lets a process open 65536 files",
    ]


@pytest.mark.parametrize(
    ("host", "what", "fix"),
    [
        (
            but(versions=(("python", "3.11.7"), ("ray", "2.55.0"))),
            "ray: 2.60.0 on h1; 2.55.0 on h2",
            "install the same ray on every host",
        ),
        (but(versions=(("python", "3.11.7"), ("ray", "missing"))), "ray is missing on h2", "install ray there"),
        (but(address="127.0.0.1"), "h2 is 127.0.0.1, which no other host reaches", "--node-ip-address"),
        (but(address="3.4.5.6"), "which none of its network cards has (eth1 10.0.0.2)", "--node-ip-address"),
        (but(shared_memory_bytes=2**26), "h2 has 0.1 GiB of shared memory", "--shm-size=8g"),
        (but(max_open_files=1024), "h2 lets a process open 1024 files", "ulimit -n 65536 on h2"),
    ],
)
def test_what_is_wrong_is_told_with_what_to_do(host, what, fix):
    (finding,) = wrong(WELL, host)
    assert what in finding.what
    assert fix in finding.fix


def test_a_host_by_itself_may_be_known_by_its_loopback_address():
    assert wrong(dataclasses.replace(WELL, address="127.0.0.1")) == []


def test_every_pair_that_can_not_connect_is_told():
    assert [finding.what for finding in judge_reach([], 3)] == ["each of 3 hosts can connect to each other"]
    (finding,) = judge_reach([("h1", "h2", "timed out")], 3)
    assert finding.what == "h1 can't connect to h2: timed out"
    assert finding.fix.startswith("let h1 reach all TCP ports of h2")


def test_one_host_has_nobody_to_connect_to():
    assert list(judge_reach([], 1)) == []


def test_facts_of_this_host_are_found():
    facts = find_facts("127.0.0.1")
    assert facts.interface() == "lo"
    assert dict(facts.versions)["ray"] != "missing"
    assert 0 < facts.free_shared_memory_bytes <= facts.shared_memory_bytes
