import io
import os

import pytest
from rich.console import Console

from kvasir.cli import instance as instance_module
from kvasir.cli.footprint import (
    Footprint,
    ProcessCost,
    costs_of,
    find_server,
    make_cost_table,
    replica_processes,
    role_of,
)
from kvasir.cli.instance import new_instance

STATUS = {"replicas": [{"id": "mixed-0", "info": {"process_id": 7}}, {"id": "mixed-1", "info": None}]}


@pytest.fixture(autouse=True)
def places(tmp_path, monkeypatch):
    """A folder of the test's own: others' servers may run on this host."""
    monkeypatch.setattr(instance_module, "TEMPORARY", tmp_path)


def cost(process_id, role, megabytes, cpu_s):
    size = megabytes * 2**20
    return ProcessCost(process_id=process_id, role=role, rss_bytes=2 * size, pss_bytes=size, cpu_s=cpu_s)


def rows(*tables):
    output = io.StringIO()
    for table in tables:
        Console(file=output, width=120).print(table)
    return [line.split() for line in output.getvalue().splitlines()]


@pytest.mark.parametrize(
    ("command", "role"),
    [
        ("/venv/bin/python -m kvasir_router --model m", "router"),
        ("ray::RankActor.wait_until_stopped", "replica"),
        ("ray::Controller.run", "controller"),
        ("/ray/core/src/ray/gcs/gcs_server --log_dir=/tmp", "Ray: head"),
        ("/ray/core/src/ray/raylet/raylet --raylet_socket_name=/tmp", "Ray: raylet"),
        ("/usr/bin/sleep 5", "sleep"),
        ("", "?"),
    ],
)
def test_processes_are_told_apart_by_their_command(command, role):
    assert role_of(command) == role


def test_replicas_go_by_the_names_that_the_server_tells():
    assert replica_processes(STATUS) == {7: "mixed-0"}


def test_server_of_this_host_is_found_by_its_port():
    with new_instance() as instance:
        instance.note_port(8123)
        for host in ("127.0.0.1", "localhost", "[::1]"):
            assert find_server(f"http://{host}:8123") == os.getpid()
        assert find_server("http://127.0.0.1:8124") is None
        assert find_server("http://192.0.2.1:8123") is None


def test_costs_are_those_of_the_server_and_all_below_it():
    (mine, *others) = sorted(costs_of(os.getpid(), {}), key=lambda cost: cost.process_id != os.getpid())
    assert (mine.process_id, mine.role) == (os.getpid(), "kvasir serve")
    assert mine.rss_bytes >= mine.pss_bytes > 0
    assert all(other.role != "kvasir serve" for other in others)


def test_table_shows_the_largest_first_and_the_sum():
    before = [cost(1, "router", 50, 1.0), cost(2, "mixed-0", 400, 10.0)]
    after = [cost(1, "router", 50, 1.1), cost(2, "mixed-0", 400, 11.0), cost(3, "Ray: raylet", 10, 0.2)]
    assert rows(make_cost_table(before, after, 2.0))[1:] == [
        ["mixed-0", "2", "800", "MiB", "400", "MiB", "50.0", "%"],
        ["router", "1", "100", "MiB", "50", "MiB", "5.0", "%"],
        ["Ray:", "raylet", "3", "20", "MiB", "10", "MiB", "10.0", "%"],
        ["together", "460", "MiB", "65.0", "%"],
    ]


def test_nothing_is_shown_of_a_server_elsewhere():
    assert Footprint("http://192.0.2.1:8000", STATUS).look(STATUS) is None


def test_a_look_tells_the_server_and_what_is_below_it():
    with new_instance() as instance:
        instance.note_port(8123)
        table = Footprint("http://127.0.0.1:8123", STATUS).look(STATUS)
    assert table is not None
    first_cells = [row[0] for row in rows(table)[1:]]
    assert first_cells.count("kvasir") == 1 and first_cells[-1] == "together"
