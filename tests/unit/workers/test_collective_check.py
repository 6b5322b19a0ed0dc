"""The check among processes of this host; between hosts: tests/cluster/test_ray_up.py."""

import subprocess
import sys

import pytest

from kvasir_protocol.errors import ServiceUnavailable
from kvasir_workers.collective_check import CheckPlace, time_all_reduce

RANK = """
import sys
from kvasir_workers.collective_check import CheckPlace, time_all_reduce
place = CheckPlace(rank=int(sys.argv[1]), world_size=2, endpoint=sys.argv[2], interface="lo", backend="gloo")
print(time_all_reduce(place) > 0)
"""


@pytest.fixture
def endpoint(free_port):
    return f"127.0.0.1:{free_port}"


def test_two_processes_add_up(endpoint):
    words = [sys.executable, "-c", RANK]
    ranks = [
        subprocess.Popen([*words, str(rank), endpoint], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        for rank in (0, 1)
    ]
    assert [rank.communicate(timeout=120)[0].strip() for rank in ranks] == ["True", "True"]


def test_a_card_that_is_not_there_is_told(endpoint):
    place = CheckPlace(rank=0, world_size=1, endpoint=endpoint, interface="nowhere", backend="gloo")
    with pytest.raises(ServiceUnavailable, match="the gloo all-reduce failed at rank 0"):
        time_all_reduce(place)
