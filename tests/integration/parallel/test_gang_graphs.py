"""Gangs whose ranks replay recorded decode steps say what one rank says that computes each step anew.

On a CPU a recording is computed again, sums and gathers and all; what is given to it is what a GPU gets.
"""

import pytest

from kvasir_workers.parallel.mesh import GangShape
from tests.fakes.recorder import LoggedRecorder
from tests.gangs import ThreadGang, gang_config
from tests.integration.engine.conftest import DEMO_MODEL, Answer, Model, run
from tests.integration.parallel.test_gang_answers import WISHES, requests


@pytest.fixture(scope="module")
def expected() -> list[Answer]:
    return run(Model(DEMO_MODEL).engine(overlap=False), requests())


def replayed(
    tp: int, num_pages: int = 300, arrivals_per_step: int = 2, **settings: object
) -> tuple[list[Answer], list[LoggedRecorder]]:
    """What a gang says, and what its ranks replayed for it."""
    shape = GangShape(tensor_parallel_size=tp)
    settings = {"max_num_batched_tokens": 64, "max_num_seqs": 6, **settings}
    config = gang_config(DEMO_MODEL, shape, num_pages, **settings)
    recorders = [LoggedRecorder() for _ in range(tp)]
    with ThreadGang(DEMO_MODEL, shape, config, recorders=recorders) as gang:
        answers = run(gang.engine(), requests(), arrivals_per_step=arrivals_per_step)
    return answers, recorders


def tokens(answers: list[Answer]) -> list[list[int]]:
    return [answer.token_ids for answer in answers]


@pytest.mark.parametrize("overlap", [False, True])
@pytest.mark.parametrize("tp", [2, 4])
def test_tokens_are_those_of_one_rank(tp: int, overlap: bool, expected: list[Answer]) -> None:
    answers, recorders = replayed(tp, overlap=overlap)
    assert tokens(answers) == tokens(expected)
    assert len(recorders[0].replayed) >= 8, "most of ten tokens come from graphs"


@pytest.mark.parametrize("overlap", [False, True])
def test_tokens_are_the_same_if_pages_run_short(overlap: bool, expected: list[Answer]) -> None:
    assert tokens(replayed(2, num_pages=20, overlap=overlap)[0]) == tokens(expected)


def test_all_ranks_record_and_replay_the_same_graphs_in_the_same_order() -> None:
    _, recorders = replayed(4, arrivals_per_step=1, overlap=True)
    assert recorders[0].recorded == [f"{size} decodes" for size in (6, 4, 2, 1)]
    assert len(set(recorders[0].replayed)) > 1
    for recorder in recorders[1:]:
        assert recorder.recorded == recorders[0].recorded
        assert recorder.replayed == recorders[0].replayed


def test_scores_of_answers_and_prompts_are_those_of_one_rank(expected: list[Answer]) -> None:
    place = list(WISHES).index("scores of the prompt")
    one, other = expected[place], replayed(2)[0][place]
    assert [item.top_token_ids for item in other.logprobs] == [item.top_token_ids for item in one.logprobs]
    assert [item.logprob for item in other.prompt_logprobs] == pytest.approx(
        [item.logprob for item in one.prompt_logprobs], abs=1e-4
    )
