"""Three hosts brought up by `ray up`, a cluster of gangs on them by `kvasir up`, and nothing left after `down`."""

from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from kvasir import LLM, SamplingParams
from tests.cluster.hosts import running_hosts, why_not
from tests.cluster.ray_up import HEAD, WORKERS, RayCluster, wait_until

pytestmark = [
    pytest.mark.skipif(why_not() is not None, reason=f"no hosts here: {why_not()}"),
    pytest.mark.timeout(600),
]

CLUSTER = """\
engine: {kv_cache_bytes: 16MiB, max_num_seqs: 16, max_num_batched_tokens: 512}
pools:
  - {role: prefill, tensor_parallel_size: 2, node_resource: front}
  - {role: decode, pipeline_parallel_size: 2, node_resource: back}
"""

TOO_LARGE = CLUSTER.replace("role: decode,", "role: decode, replicas: 5,")

MISTAKEN = CLUSTER.replace("role: prefill, tensor", "role: prefill, tensro")

QUESTION, NUM_TOKENS = "Who was Kvasir?", 12


@dataclass(frozen=True, kw_only=True)
class Story:
    """What the operator saw. Each pair is an exit code and the words of a command."""

    ssh: tuple[int, str]
    doctor: tuple[int, str]
    mistaken: tuple[int, str]
    refused: tuple[int, str]
    up: tuple[int, str]
    answer: str
    handed_over_bytes: float
    ranks: dict[int, list[str]]
    status: tuple[int, str]
    again: tuple[int, str]
    ranks_after_again: dict[int, list[str]]
    down: tuple[int, str]
    left_after_down: list[str]
    down_again: tuple[int, str]
    left_after_ray_down: list[str]


@pytest.fixture(scope="module")
def story() -> Iterator[Story]:
    with running_hosts(4) as hosts:
        cluster = RayCluster(hosts)
        file = cluster.write("cluster.yaml", CLUSTER)
        ssh = cluster.examine_ssh()
        cluster.up()
        doctor = cluster.kvasir("doctor --address auto")
        mistaken = cluster.kvasir(f"up {cluster.write('mistaken.yaml', MISTAKEN)} --yes")
        refused = cluster.kvasir(f"up {cluster.write('large.yaml', TOO_LARGE)} --yes")
        up = cluster.kvasir(f"up {file} --yes")
        answer, ranks = cluster.ask(QUESTION, NUM_TOKENS), cluster.ranks()
        wait_until(lambda: cluster.handed_over_bytes("tcp") > 0, "word of pages that were handed over")
        handed_over_bytes = cluster.handed_over_bytes("tcp")
        status = cluster.kvasir("status --address auto")
        again = cluster.kvasir(f"up {file}")
        ranks_after_again = cluster.ranks()
        down = cluster.kvasir("down --yes")
        left_after_down = cluster.traces() + [line for lines in cluster.ranks().values() for line in lines]
        down_again = cluster.kvasir("down --yes")
        cluster.down()
        yield Story(
            ssh=ssh,
            doctor=doctor,
            mistaken=mistaken,
            refused=refused,
            up=up,
            answer=answer,
            handed_over_bytes=handed_over_bytes,
            ranks=ranks,
            status=status,
            again=again,
            ranks_after_again=ranks_after_again,
            down=down,
            left_after_down=left_after_down,
            down_again=down_again,
            left_after_ray_down=cluster.traces() + cluster.processes(HEAD),
        )


def test_doctor_reaches_every_host_by_ssh(story):
    code, said = story.ssh
    assert code == 0, said
    assert said.count("works, and rsync is there") == 3


def test_doctor_finds_nothing_wrong_with_the_hosts_and_lets_them_compute_together(story):
    code, said = story.doctor
    assert code == 0, said
    assert "each of 3 hosts can connect to each other" in said
    assert "gloo: 3 hosts add up 1 MiB in " in said


def test_a_mistake_in_the_file_is_told_with_its_line(story):
    code, said = story.mistaken
    assert code == 1
    wrong, right = "tensro_parallel_size", "tensor_parallel_size"
    assert f"mistaken.yaml:3: unknown setting 'pools[0].{wrong}'; did you mean {right!r}?" in said


def test_what_can_not_be_placed_is_refused_with_what_is_missing_before_anything_starts(story):
    code, said = story.refused
    assert code == 1
    assert 'pool "decode" needs 2 x 1 CPUs per replica (pipeline_parallel_size=2) on a node with back' in said
    assert "The cluster's CPUs by host: " in said
    assert "starting" not in said


def test_up_tells_its_plan_and_where_it_answers(story):
    code, said = story.up
    assert code == 0, said
    assert "+ pool prefill: 1 replica, tensor parallel over 2, on hosts with front" in said
    assert "listening on http://10.79.0.11:8000/v1" in said


def test_a_router_on_the_head_answers_as_a_single_process_does(story):
    with LLM(kv_cache_memory_bytes=16 * 2**20) as llm:
        messages = [{"role": "user", "content": QUESTION}]
        (alone,) = llm.chat(messages, SamplingParams(temperature=0, max_tokens=NUM_TOKENS), use_tqdm=False)
    assert story.answer == alone.outputs[0].text


def test_pages_went_from_host_to_host_between_the_pools(story):
    assert story.handed_over_bytes > 0


def test_a_tensor_parallel_group_is_on_one_host_and_a_pipeline_spans_two_others(story):
    assert [len(story.ranks[host]) for host in (HEAD, *WORKERS)] == [1, 2, 1]


def test_status_shows_pools_hosts_and_routers(story):
    code, said = story.status
    assert code == 0, said
    rows = [line.split() for line in said.splitlines()]
    placed = {row[0]: " ".join(row[3:]) for row in rows if row[:1] in (["prefill-0"], ["decode-0"])}
    assert placed["prefill-0"].startswith("2 on h2 ")
    assert placed["decode-0"].startswith(("1 on h1, 1 on h3 ", "1 on h3, 1 on h1 "))
    assert ["10.79.0.11", "http://10.79.0.11:8000", "up", "2"] in rows
    assert ["h1", "10.79.0.11", "head", "1", "0", "1"] in rows


def test_up_again_asks_nothing_and_changes_nothing(story):
    code, said = story.again
    assert code == 0, said
    assert "nothing changes" in said
    assert story.ranks_after_again == story.ranks


def test_down_leaves_neither_process_nor_file(story):
    code, said = story.down
    assert code == 0, said
    assert story.left_after_down == []
    assert story.down_again == (0, "there is no cluster 'main' here; nothing to take away\n")


def test_ray_down_leaves_neither_process_nor_file(story):
    assert story.left_after_ray_down == []
