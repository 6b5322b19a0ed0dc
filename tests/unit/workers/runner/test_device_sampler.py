"""The sampler that never waits says what the plain one says, though the host hears of each token a step later."""

import random
from dataclasses import dataclass, field

import pytest
import torch

from kvasir_workers.runner.device_sampler import DeviceSampler
from kvasir_workers.runner.grammar_mask import GrammarMasks
from kvasir_workers.runner.sampler import SampledToken, Sampler
from kvasir_workers.runner.sampling_rows import SampledRows
from kvasir_workers.sequence import Sequence
from tests.unit.workers.runner.any_row import V, random_logits, random_row, sequence_of

EOS = frozenset({3})


def device_sampler(max_rows: int = 8) -> DeviceSampler:
    return DeviceSampler(EOS, V, torch.zeros(max_rows, dtype=torch.int64))


def last_positions(sequences: list[Sequence], num_unknown: int = 0) -> torch.Tensor:
    return torch.tensor([sequence.num_tokens - 1 + num_unknown for sequence in sequences])


def assert_alike(ours: list[SampledToken], plain: list[SampledToken]) -> None:
    assert [token.token_id for token in ours] == [token.token_id for token in plain]
    assert [token.logit for token in ours] == pytest.approx([token.logit for token in plain], abs=1e-5, nan_ok=True)
    assert [token.logprobs for token in ours] == [token.logprobs for token in plain]


@pytest.mark.parametrize("seed", range(20))
def test_tokens_and_scores_are_those_of_the_plain_sampler(seed: int) -> None:
    draw = random.Random(seed)
    sequences = [random_row(draw) for _ in range(8)]
    logits = torch.stack([random_logits(1000 * seed + i) for i in range(8)])
    plain = Sampler(EOS).sample(logits.clone(), SampledRows.of(sequences), None).tokens()
    ours = device_sampler().sample(logits.clone(), tuple(sequences), last_positions(sequences), None).tokens()
    assert_alike(ours, plain)


@dataclass
class Overlapped:
    """Sequences that are told of each token when the step after it has been launched, and their tokens."""

    sampler: DeviceSampler
    unheard: dict[Sequence, int] = field(default_factory=dict)

    def step(self, sequences: list[Sequence], logits: torch.Tensor) -> list[SampledToken]:
        positions = torch.tensor([s.num_tokens - 1 + (s in self.unheard) for s in sequences])
        flight = self.sampler.sample(logits, tuple(sequences), positions, None)
        for sequence, token_id in self.unheard.items():
            sequence.token_ids.append(token_id)
        tokens = flight.tokens()
        self.unheard = {s: token.token_id for s, token in zip(sequences, tokens, strict=True)}
        return tokens


@pytest.mark.parametrize("seed", range(12))
def test_penalties_count_the_token_that_the_host_has_not_heard_of(seed: int) -> None:
    """Sequences come and go, and one that goes and comes back is another's neighbour then."""
    draw = random.Random(seed)
    everybody = [
        sequence_of(
            seed=draw.randint(0, 99),
            temperature=draw.choice([0, 1.0]),
            repetition_penalty=draw.choice([1.0, 1.5]),
            presence_penalty=draw.choice([0.0, 1.0]),
            frequency_penalty=draw.choice([0.0, 0.8]),
            min_tokens=draw.choice([0, 3]),
        )
        for _ in range(7)
    ]
    twins = {sequence: Sequence(sequence.request) for sequence in everybody}
    overlapped = Overlapped(device_sampler())
    present = everybody[:4]
    for step in range(14):
        if step % 3 == 2:
            present = draw.sample(everybody, draw.randint(1, 7))
            for sequence, token_id in overlapped.unheard.items():  # who was away knows all its tokens
                if sequence not in present:
                    sequence.token_ids.append(token_id)
            overlapped.unheard = {s: t for s, t in overlapped.unheard.items() if s in present}
        logits = torch.stack([random_logits(100 * step + everybody.index(s)) for s in present])
        told = [twins[sequence] for sequence in present]
        plain = Sampler(EOS).sample(logits.clone(), SampledRows.of(told), None).tokens()
        assert_alike(overlapped.step(present, logits.clone()), plain)
        for sequence, token in zip(told, plain, strict=True):
            sequence.token_ids.append(token.token_id)


def test_grammar_mask_comes_before_the_choice() -> None:
    sequences = [sequence_of(temperature=0), sequence_of(temperature=1.0)]
    only_seven = GrammarMasks(rows=(1,), bits=torch.tensor([[1 << 7]], dtype=torch.int32))
    logits = torch.stack([random_logits(1), random_logits(2)])
    tokens = device_sampler().sample(logits.clone(), tuple(sequences), last_positions(sequences), only_seven).tokens()
    assert [token.token_id for token in tokens] == [int(logits[0].argmax()), 7]


def test_said_holds_what_was_said_row_by_row() -> None:
    sampler, sequences = device_sampler(), [sequence_of(temperature=0) for _ in range(3)]
    logits = torch.stack([random_logits(i) for i in range(3)])
    sampler.sample(logits.clone(), tuple(sequences), last_positions(sequences), None)
    assert sampler.said.tolist() == [*logits.argmax(-1).tolist(), 0, 0, 0, 0, 0]


def test_many_and_few_logprobs_side_by_side() -> None:
    sequences = [sequence_of(temperature=0, logprobs=num) for num in (0, 3, 40)]
    logits = torch.stack([random_logits(i) for i in range(3)])
    tokens = device_sampler().sample(logits, tuple(sequences), last_positions(sequences), None).tokens()
    numbers = [len(token.logprobs.top_token_ids) for token in tokens if token.logprobs is not None]
    assert numbers == [0, 3, V]


@pytest.mark.parametrize("kind", [{"temperature": 0}, {"temperature": 1.0}, {"top_k": 3}])
def test_row_that_holds_no_number_is_told(kind: dict[str, float]) -> None:
    sequences = [sequence_of(**kind), sequence_of(**kind)]
    logits = torch.stack([random_logits(1), random_logits(2)])
    logits[1, 4] = torch.nan
    tokens = device_sampler().sample(logits, tuple(sequences), last_positions(sequences), None).tokens()
    assert tokens[0].logit < torch.inf
    assert tokens[1].logit != tokens[1].logit
