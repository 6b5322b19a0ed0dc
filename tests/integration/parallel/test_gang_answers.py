"""Gangs of any shape answer as one rank does: same tokens, same scores, whatever is asked of them."""

import pytest
import torch

from kvasir_protocol.ids import RequestId
from kvasir_protocol.request import GenerationRequest, SamplingParams
from kvasir_workers.parallel.mesh import GangShape
from tests.gangs import ThreadGang, gang_config
from tests.integration.engine.conftest import DEMO_MODEL, Answer, Model, run

SHAPES = [(1, 1), (2, 1), (4, 1), (8, 1), (1, 2), (1, 3), (2, 2), (4, 3)]


def prompt(index: int) -> tuple[int, ...]:
    """Pairs of them begin alike."""
    return tuple((7 * i + (index // 2) * 13 + (index % 2) * (i > 20)) % 2000 + 5 for i in range(5 + 9 * index))


WISHES: dict[str, dict[str, object]] = {
    "greedy": {"temperature": 0},
    "any token": {"temperature": 0.8},
    "likely tokens": {"temperature": 1.1, "top_k": 50, "top_p": 0.9},
    "no repetition": {"temperature": 0, "repetition_penalty": 1.3, "frequency_penalty": 0.2},
    "scores of the prompt": {"temperature": 0, "prompt_logprobs": 2, "logprobs": 3},
    "a second greedy": {"temperature": 0, "min_tokens": 3},
}


def requests() -> list[GenerationRequest]:
    return [
        GenerationRequest(
            request_id=RequestId(name),
            prompt_token_ids=prompt(index),
            sampling=SamplingParams(seed=index, max_tokens=10, ignore_eos=True, **wishes),  # type: ignore[arg-type]
        )
        for index, (name, wishes) in enumerate(WISHES.items())
    ]


@pytest.fixture(scope="module")
def expected() -> list[Answer]:
    return run(Model(DEMO_MODEL).engine(overlap=False), requests())


def answers(tp: int, pp: int, num_pages: int = 300, **settings: object) -> list[Answer]:
    shape = GangShape(tensor_parallel_size=tp, pipeline_parallel_size=pp)
    settings = {"max_num_batched_tokens": 64, "max_num_seqs": 8, **settings}
    with ThreadGang(DEMO_MODEL, shape, gang_config(DEMO_MODEL, shape, num_pages, **settings)) as gang:
        return run(gang.engine(), requests(), arrivals_per_step=2)


@pytest.mark.parametrize(("tp", "pp"), SHAPES)
def test_tokens_are_those_of_one_rank(tp: int, pp: int, expected: list[Answer]) -> None:
    found = answers(tp, pp)
    assert [answer.token_ids for answer in found] == [answer.token_ids for answer in expected]


@pytest.mark.parametrize("tp", [2, 4])
def test_tokens_are_the_same_if_steps_overlap(tp: int, expected: list[Answer]) -> None:
    found = answers(tp, 1, overlap=True)
    assert [answer.token_ids for answer in found] == [answer.token_ids for answer in expected]


@pytest.mark.parametrize(("tp", "pp"), [(2, 1), (1, 2), (2, 2)])
def test_tokens_are_the_same_if_pages_run_short(tp: int, pp: int, expected: list[Answer]) -> None:
    found = answers(tp, pp, num_pages=20)
    assert [answer.token_ids for answer in found] == [answer.token_ids for answer in expected]


@pytest.mark.parametrize(("tp", "pp"), [(2, 1), (1, 3), (2, 2)])
def test_scores_are_those_of_one_rank(tp: int, pp: int, expected: list[Answer]) -> None:
    place = list(WISHES).index("scores of the prompt")
    one, other = expected[place], answers(tp, pp)[place]
    assert [item.top_token_ids for item in other.logprobs] == [item.top_token_ids for item in one.logprobs]
    torch.testing.assert_close(
        torch.tensor([item.logprob for item in other.prompt_logprobs]),
        torch.tensor([item.logprob for item in one.prompt_logprobs]),
        atol=1e-4,
        rtol=0,
    )


def test_embedding_is_that_of_one_rank() -> None:
    request = GenerationRequest(
        request_id=RequestId("e"),
        prompt_token_ids=prompt(5),
        sampling=SamplingParams(seed=0, max_tokens=1),
        pooling="mean",
    )
    shape = GangShape(tensor_parallel_size=2, pipeline_parallel_size=2)
    (one,) = run(Model(DEMO_MODEL).engine(overlap=False), [request])
    with ThreadGang(DEMO_MODEL, shape, gang_config(DEMO_MODEL, shape, 100)) as gang:
        (other,) = run(gang.engine(), [request])
    torch.testing.assert_close(torch.tensor(other.embedding), torch.tensor(one.embedding), atol=1e-4, rtol=0)
