"""Prompt readers over hidden states that come in chunks, some of them twice."""

import pytest
import torch
from torch import Tensor

from kvasir_protocol.ids import RequestId
from kvasir_protocol.request import GenerationRequest, Pooling, SamplingParams
from kvasir_workers.prompt_reader import PromptPooler, PromptScorer, prompt_reader

V, E = 11, 5
PROMPT = (3, 1, 4, 1, 5, 9, 2, 6)
HIDDEN = torch.randn(len(PROMPT), E, generator=torch.Generator().manual_seed(0))
HEAD = torch.randn(E, V, generator=torch.Generator().manual_seed(1))

CHUNKS = {
    "whole": [(0, 8)],
    "chunks": [(0, 3), (3, 4), (4, 8)],
    "again after a preemption": [(0, 5), (0, 2), (2, 7), (4, 8)],
    "only what was read before": [(0, 5), (0, 5), (5, 8)],
}


def logits_of(hidden: Tensor) -> Tensor:
    return hidden @ HEAD


@pytest.mark.parametrize("chunks", CHUNKS.values(), ids=CHUNKS)
def test_every_token_but_the_first_is_scored_once(chunks: list[tuple[int, int]]) -> None:
    scorer = PromptScorer(PROMPT, 2)
    for start, end in chunks:
        scorer.read(HIDDEN[start:end], start, logits_of)
    expected = torch.log_softmax(logits_of(HIDDEN), dim=-1)
    assert [item.logprob for item in scorer.logprobs] == pytest.approx(
        [float(expected[place, token]) for place, token in enumerate(PROMPT[1:])], abs=1e-5
    )
    assert [item.top_token_ids for item in scorer.logprobs] == [
        tuple(row.topk(2).indices.tolist()) for row in expected[:-1]
    ]


@pytest.mark.parametrize("chunks", CHUNKS.values(), ids=CHUNKS)
@pytest.mark.parametrize("pooling", ["mean", "last", "cls"])
def test_embedding_does_not_depend_on_the_chunks(chunks: list[tuple[int, int]], pooling: Pooling) -> None:
    pooler = PromptPooler(pooling, len(PROMPT))
    for start, end in chunks:
        pooler.read(HIDDEN[start:end], start, logits_of)
    expected = {"mean": HIDDEN.mean(dim=0), "last": HIDDEN[-1], "cls": HIDDEN[0]}[pooling]
    assert pooler.embedding() == pytest.approx(expected.tolist(), abs=1e-6)


def test_logits_are_made_for_few_rows_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kvasir_workers.prompt_reader._MAX_LOGIT_BYTES", 3 * 4 * V)
    sizes: list[int] = []

    def counted(hidden: Tensor) -> Tensor:
        sizes.append(len(hidden))
        return logits_of(hidden)

    PromptScorer(PROMPT, 0).read(HIDDEN, 0, counted)
    assert sizes == [1, 3, 3]


def test_cached_pages_may_stand_in_for_what_is_not_needed_any_more() -> None:
    scorer = PromptScorer(PROMPT, 0)
    assert scorer.num_skippable == 0
    scorer.read(HIDDEN[:5], 0, logits_of)
    assert scorer.num_skippable == 5
    scorer.read(HIDDEN[5:], 5, logits_of)
    assert scorer.num_skippable > len(PROMPT)
    assert PromptPooler("last", len(PROMPT)).num_skippable > len(PROMPT)
    assert PromptPooler("mean", len(PROMPT)).num_skippable == 0


def test_prompt_is_not_scored_again_for_a_replay() -> None:
    def reader(**changes: object) -> object:
        sampling = SamplingParams(max_tokens=9, seed=0, prompt_logprobs=1)
        return prompt_reader(
            GenerationRequest(request_id=RequestId("r"), prompt_token_ids=PROMPT, sampling=sampling, **changes)  # type: ignore[arg-type]
        )

    assert isinstance(reader(), PromptScorer)
    assert reader(emitted_token_ids=(1,)) is None
