"""Beam search against transformers': the same sequences with the same scores."""

import itertools
import random
from typing import Any, Literal

import pytest
import torch
from transformers import PreTrainedModel

from kvasir import LLM, BeamSearchParams
from kvasir_protocol.errors import InvalidRequest
from kvasir_workers.engine import Engine, StepFlight
from kvasir_workers.step_plan import StepPlan
from tests.integration.llm.conftest import EOS, MakeLLM


def prompts() -> list[list[int]]:
    draw = random.Random(8)
    return [draw.choices(range(3, 200), k=length) for length in (1, 6, 19)]


@torch.inference_mode()
def their_beams(
    theirs: PreTrainedModel, prompt: list[int], params: BeamSearchParams, eos: int | None = EOS
) -> list[tuple[float, list[int]]]:
    ids = torch.tensor([prompt])
    found: Any = theirs.generate(  # type: ignore[operator]
        ids,
        attention_mask=torch.ones_like(ids),
        do_sample=False,
        num_beams=params.beam_width,
        num_return_sequences=params.beam_width,
        max_new_tokens=params.max_tokens,
        length_penalty=params.length_penalty,
        early_stopping=params.early_stopping,
        eos_token_id=eos,
        pad_token_id=0,
        return_dict_in_generate=True,
        output_scores=True,
    )
    beams = []
    for score, row in zip(found.sequences_scores.tolist(), found.sequences.tolist(), strict=True):
        answer = row[len(prompt) :]
        end = answer.index(eos) + 1 if eos in answer else len(answer)
        beams.append((score, row[: len(prompt) + end]))
    return beams


def assert_beams(theirs: PreTrainedModel, llm: LLM, params: BeamSearchParams, eos: int | None = EOS) -> set[str]:
    reasons = set()
    for prompt, ours in zip(prompts(), llm.beam_search(prompts(), params), strict=True):
        expected = their_beams(theirs, prompt, params, eos)
        assert [sequence.score for sequence in ours.sequences] == pytest.approx(
            [score for score, _ in expected], rel=1e-6, abs=1e-4
        )
        assert [sequence.tokens for sequence in ours.sequences] == [tokens for _, tokens in expected]
        reasons |= {sequence.finish_reason for sequence in ours.sequences}
    return reasons


CASES = [
    *itertools.product([2, 4], [1.0], [False]),
    *itertools.product([3], [0.0, 0.6, 2.0, -1.0], [False, True, "never"]),
    (9, 1.0, True),
    (64, 1.0, False),
]


@pytest.mark.parametrize(("width", "length_penalty", "early_stopping"), CASES)
def test_beams_are_those_of_transformers(
    llm: LLM, theirs: PreTrainedModel, width: int, length_penalty: float, early_stopping: bool | Literal["never"]
) -> None:
    params = BeamSearchParams(
        beam_width=width, max_tokens=14, length_penalty=length_penalty, early_stopping=early_stopping
    )
    assert_beams(theirs, llm, params)


def test_beams_that_end_early_are_those_of_transformers(
    llm_likely_end: LLM, theirs_likely_end: PreTrainedModel
) -> None:
    for length_penalty, early_stopping in itertools.product([0.0, 1.0, 2.0], [False, True, "never"]):
        params = BeamSearchParams(
            beam_width=4,
            max_tokens=12,
            length_penalty=length_penalty,
            early_stopping=early_stopping,  # type: ignore[arg-type]
        )
        assert "stop" in assert_beams(theirs_likely_end, llm_likely_end, params)


def test_end_token_can_be_ignored(llm: LLM, theirs: PreTrainedModel) -> None:
    params = BeamSearchParams(beam_width=3, max_tokens=10, ignore_eos=True)
    assert assert_beams(theirs, llm, params, eos=None) == {"length"}


class WatchedSteps:
    """An engine's runner that notes of each step how many tokens it computes and how many pages are in use."""

    def __init__(self, engine: Engine) -> None:
        self._engine, self._runner = engine, engine._runner
        self.num_tokens: list[int] = []
        self.num_used_pages: list[int] = []

    def launch(self, plan: StepPlan) -> StepFlight:
        self.num_tokens.append(plan.num_tokens)
        self.num_used_pages.append(self._engine.num_used_pages)
        return self._runner.launch(plan)


def watch(llm: LLM) -> WatchedSteps:
    llm._driver.engine._runner = steps = WatchedSteps(llm._driver.engine)
    return steps


@pytest.mark.parametrize("num_prompt_tokens", [1, 37, 40])
def test_each_round_computes_one_token_of_each_beam(make_llm: MakeLLM, num_prompt_tokens: int) -> None:
    with make_llm() as llm:
        steps = watch(llm)
        prompt = list(range(3, 3 + num_prompt_tokens))
        llm.beam_search([prompt], BeamSearchParams(beam_width=5, max_tokens=20, ignore_eos=True))
        assert steps.num_tokens == [num_prompt_tokens] + [5] * 19


def test_beams_beyond_a_steps_places_compute_one_token_each_too(make_llm: MakeLLM) -> None:
    with make_llm(max_num_seqs=3) as llm:
        steps = watch(llm)
        llm.beam_search([list(range(3, 43))], BeamSearchParams(beam_width=5, max_tokens=20, ignore_eos=True))
        assert sum(steps.num_tokens) == 40 + 5 * 19


def test_beams_hold_what_they_share_and_a_page_each(make_llm: MakeLLM) -> None:
    """10 full pages of the prompt are shared; who parts from another holds the page where they part for a step, too.
    Beams that parted before the page in which they are differ in whole pages: here in 1 page of 4 tokens at most."""
    width = 8
    with make_llm() as llm:
        steps = watch(llm)
        llm.beam_search([list(range(3, 43))], BeamSearchParams(beam_width=width, max_tokens=5, ignore_eos=True))
        assert max(steps.num_used_pages) <= 10 + width + width // 2
        assert llm.get_stats().num_used_pages == 0


@pytest.mark.parametrize(
    ("options", "field"),
    [
        ({"beam_width": 0}, "beam_width"),
        ({"beam_width": 128}, "beam_width"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"temperature": 0.5}, "temperature"),
        ({"early_stopping": "maybe"}, "early_stopping"),
    ],
)
def test_parameters_that_cannot_be_are_refused(options: dict[str, Any], field: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        BeamSearchParams(**{"beam_width": 2, "max_tokens": 4, **options})
    assert caught.value.field == field
