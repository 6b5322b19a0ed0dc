"""From logits to tokens, against slow references written here."""

import math
import random
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from kvasir_protocol.request import MAX_SEED, SamplingParams
from kvasir_workers.runner.choice import filter_sorted
from kvasir_workers.runner.noise import uniform_noise
from kvasir_workers.runner.sampler import Sampler
from kvasir_workers.runner.sampling_rows import SampledRows
from kvasir_workers.sequence import Sequence
from tests.unit.workers.fakes import make_request
from tests.unit.workers.runner.any_row import V, random_logits, random_row, sequence_of
from tests.unit.workers.runner.fresh_sampler import sample

NO_EOS: frozenset[int] = frozenset()


def one(logits: Tensor, sequence: Sequence, eos: frozenset[int] = NO_EOS) -> int:
    return sample(logits.clone()[None], [sequence], eos)[0].token_id


def support(logits: Tensor, num_draws: int = 400, **sampling: object) -> set[int]:
    """All tokens that many positions of one request get."""
    rows = [sequence_of(answer=(0,) * position, **sampling) for position in range(num_draws)]
    return {token.token_id for token in sample(logits.repeat(num_draws, 1), rows, NO_EOS)}


def reference_kept(logits: Tensor, params: SamplingParams) -> dict[int, float]:
    """Tokens that survive min-p, top-k and top-p in this order, and their probabilities: one loop per filter."""
    scaled = [float(logit) / params.temperature for logit in logits.double()]
    top = max(scaled)
    weights = {token: math.exp(value - top) for token, value in enumerate(scaled)}
    total = sum(weights.values())
    ranked = sorted(weights, key=lambda token: (-weights[token], token))
    ranked = [token for token in ranked if weights[token] / total >= params.min_p * weights[ranked[0]] / total]
    if params.top_k > 0:
        ranked = ranked[: params.top_k]
    mass = sum(weights[token] for token in ranked)
    kept: list[int] = []
    reached = 0.0
    for token in ranked:
        if kept and reached >= params.top_p:
            break
        kept.append(token)
        reached += weights[token] / mass
    mass = sum(weights[token] for token in kept)
    return {token: weights[token] / mass for token in kept}


def reference_choice(logits: Tensor, sequence: Sequence) -> tuple[int, float]:
    """The token at which the running sum passes the noise, and how far the noise is from the next border."""
    params = sequence.request.sampling
    kept = reference_kept(logits, params)
    is_filtered = params.top_k > 0 or params.top_p < 1 or params.min_p > 0
    order = list(kept) if is_filtered else sorted(kept)
    noise = float(uniform_noise([sequence])[0])
    reached, borders, chosen = 0.0, [], order[-1]
    for token in order:
        reached += kept[token]
        borders.append(abs(reached - noise))
        if reached > noise:
            chosen = token
            break
    return chosen, min(borders)


FILTERS: dict[str, dict[str, object]] = {
    "none": {},
    "top-k": {"top_k": 3},
    "top-p": {"top_p": 0.6},
    "min-p": {"min_p": 0.2},
    "all": {"top_k": 5, "top_p": 0.8, "min_p": 0.05},
    "hot": {"temperature": 2.0, "top_p": 0.9},
    "cold": {"temperature": 0.1, "min_p": 0.01},
}


@pytest.mark.parametrize("filters", FILTERS.values(), ids=FILTERS)
def test_choice_is_that_of_the_slow_reference(filters: dict[str, object]) -> None:
    for seed in range(60):
        logits = random_logits(seed)
        sequence = sequence_of(seed=seed, **filters)
        expected, margin = reference_choice(logits, sequence)
        assert one(logits, sequence) == expected or margin < 1e-6


@pytest.mark.parametrize("filters", FILTERS.values(), ids=FILTERS)
def test_only_what_the_reference_keeps_is_ever_drawn(filters: dict[str, object]) -> None:
    logits = random_logits(3)
    kept = reference_kept(logits, sequence_of(**filters).request.sampling)
    drawn = support(logits, **filters)
    assert drawn <= kept.keys()
    assert {token for token, probability in kept.items() if probability > 0.05} <= drawn


@pytest.mark.parametrize("filters", FILTERS.values(), ids=FILTERS)
def test_tokens_come_as_often_as_their_probability_says(filters: dict[str, object]) -> None:
    """Chi-square over 4,000 seeds that never change: below its mean plus six standard deviations."""
    logits, num_draws = random_logits(5), 4000
    rows = [sequence_of(seed=seed, **filters) for seed in range(num_draws)]
    drawn = [token.token_id for token in sample(logits.repeat(num_draws, 1), rows, NO_EOS)]
    kept = {t: p for t, p in reference_kept(logits, rows[0].request.sampling).items() if p * num_draws >= 5}
    chi_square = sum((drawn.count(t) - p * num_draws) ** 2 / (p * num_draws) for t, p in kept.items())
    freedom = len(kept)
    assert chi_square < freedom + 6 * math.sqrt(2 * freedom)


def test_temperature_zero_takes_the_likeliest() -> None:
    for seed in range(20):
        logits = random_logits(seed)
        assert one(logits, sequence_of(temperature=0)) == int(logits.argmax())


def test_temperature_zero_ignores_all_filters() -> None:
    logits = random_logits(1)
    assert one(logits, sequence_of(temperature=0, top_k=1, top_p=0.1, min_p=1.0)) == int(logits.argmax())


@pytest.mark.parametrize("limits", [{"top_k": 1}, {"top_p": 1e-9}, {"min_p": 1.0}, {"temperature": 1e-30}])
def test_tightest_filter_leaves_the_likeliest(limits: dict[str, object]) -> None:
    logits = random_logits(2)
    assert support(logits, 50, **limits) == {int(logits.argmax())}


@pytest.mark.parametrize("top_k", [0, -1, V, V + 1, 2**31])
def test_wide_or_absent_top_k_excludes_nothing(top_k: int) -> None:
    assert support(torch.zeros(V), top_k=top_k) == set(range(V))


def test_top_k_keeps_exactly_k_of_equal_tokens() -> None:
    assert support(torch.zeros(V), top_k=5) == set(range(5))


def test_top_p_keeps_the_token_that_crosses_it() -> None:
    assert support(torch.tensor([0.5, 0.3, 0.2]).log(), top_p=0.6) == {0, 1}


def test_top_p_counts_what_top_k_left() -> None:
    """Of 0.4, 0.3, 0.2 and 0.1 top-k leaves 4/7 and 3/7: the first alone reaches one half."""
    assert support(torch.tensor([0.4, 0.3, 0.2, 0.1]).log(), top_k=2, top_p=0.5) == {0}


def test_top_p_of_one_excludes_nothing_even_where_sums_round_up() -> None:
    """With float32 the running sum of these 4,097 reaches 1 long before the end."""
    logits = torch.full((4097,), math.log(1e-8))
    logits[0] = 0.0
    no_limits = torch.tensor([4097]), torch.tensor([torch.inf]), torch.tensor([0.0])
    kept = filter_sorted(torch.softmax(logits, 0)[None], *no_limits)
    assert int((kept > 0).sum()) == 4097


def test_all_mass_on_one_token_draws_it() -> None:
    logits = torch.full((V,), -torch.inf)
    logits[4] = 0.0
    assert support(logits, 50) == support(logits, 50, top_p=0.5, min_p=0.1, top_k=3) == {4}


def test_impossible_tokens_are_never_drawn() -> None:
    logits = torch.zeros(V)
    logits[[0, 5, V - 1]] = -torch.inf
    assert support(logits) == support(logits, top_k=V) == set(range(V)) - {0, 5, V - 1}


def test_huge_logits_do_not_overflow() -> None:
    logits = torch.tensor([1e30, -1e30, 0.0])
    assert support(logits, 20, temperature=1e-30) == {0}


# Noise


def test_noise_is_a_function_of_seed_choice_and_position() -> None:
    rows = [
        sequence_of(seed=1),
        sequence_of(seed=2),
        sequence_of(seed=1, choice_index=1),
        sequence_of(seed=1, answer=(3,)),
    ]
    assert len(set(uniform_noise(rows).tolist())) == 4


def test_noise_depends_on_nothing_else() -> None:
    first = sequence_of(prompt=(1, 2, 3), answer=(4, 5), seed=9, temperature=0.3)
    second = sequence_of(prompt=(9,), answer=(8, 7), seed=9, top_k=4)
    assert uniform_noise([first]) == uniform_noise([second])


def test_replayed_tokens_move_the_position() -> None:
    replayed = Sequence(make_request("r", (1,), emitted=(5, 6), sampling=SamplingParams(seed=3, max_tokens=9)))
    assert uniform_noise([replayed]) == uniform_noise([sequence_of(prompt=(1,), answer=(5, 6), seed=3)])


@pytest.mark.parametrize("seed", [0, 1, 2**32, MAX_SEED])
def test_noise_lies_in_the_unit_interval(seed: int) -> None:
    noise = uniform_noise([sequence_of(seed=seed, answer=(0,) * position) for position in range(500)])
    assert bool(((noise >= 0) & (noise < 1)).all())


def chi_square_of(noise: Tensor, num_bins: int = 50) -> float:
    expected = len(noise) / num_bins
    counts = torch.histc(noise, bins=num_bins, min=0, max=1)
    return float(((counts - expected) ** 2 / expected).sum())


@pytest.mark.parametrize("what", ["seeds", "choices", "positions"])
def test_noise_is_uniform(what: str) -> None:
    """Chi-square with 49 degrees of freedom: 49 plus or minus ten; the inputs never change."""
    rows = {
        "seeds": [sequence_of(seed=i) for i in range(5000)],
        "choices": [sequence_of(choice_index=i) for i in range(5000)],
        "positions": [sequence_of(answer=(0,) * i) for i in range(2000)],
    }[what]
    assert chi_square_of(uniform_noise(rows)) < 90


def test_neighbouring_positions_are_not_alike() -> None:
    noise = uniform_noise([sequence_of(answer=(0,) * i) for i in range(2000)]) - 0.5
    assert abs(float((noise[1:] * noise[:-1]).mean() / noise.square().mean())) < 0.1


# The batch


@pytest.mark.parametrize("seed", range(10))
def test_result_of_a_row_does_not_depend_on_the_other_rows(seed: int) -> None:
    draw = random.Random(seed)
    rows = [random_row(draw) for _ in range(24)]
    logits = torch.stack([random_logits(1000 * seed + i) for i in range(24)])
    together = sample(logits.clone(), rows, frozenset({3}))
    alone = [sample(logits[i : i + 1].clone(), rows[i : i + 1], frozenset({3}))[0] for i in range(24)]
    assert together == alone


# Penalties and forbidden tokens


@pytest.mark.parametrize("penalty", [0.5, 2.0])
def test_repetition_penalty_shrinks_or_grows_what_was_seen(penalty: float) -> None:
    """Keskar et al. (2019): positive logits are divided, negative ones multiplied; prompt and answer alike."""
    logits = random_logits(11)
    expected = [
        (float(x) / penalty if x > 0 else float(x) * penalty) if token in (1, 2, 5) else float(x)
        for token, x in enumerate(logits)
    ]
    changed = logits.clone()[None]
    sample(changed, [sequence_of(answer=(5,), repetition_penalty=penalty, temperature=0)], NO_EOS)
    assert changed[0].tolist() == pytest.approx(expected)


def test_presence_and_frequency_penalties_count_the_answer_only() -> None:
    logits = random_logits(12)
    counts = {5: 2, 6: 1}
    expected = [float(x) - 0.7 * (t in counts) - 0.3 * counts.get(t, 0) for t, x in enumerate(logits)]
    changed = logits.clone()[None]
    row = sequence_of(answer=(5, 6, 5), presence_penalty=0.7, frequency_penalty=0.3, temperature=0)
    sample(changed, [row], NO_EOS)
    assert changed[0].tolist() == pytest.approx(expected)


def test_penalty_before_the_first_token_changes_nothing() -> None:
    logits = random_logits(13)
    changed = logits.clone()[None]
    sample(changed, [sequence_of(presence_penalty=2.0, frequency_penalty=2.0, temperature=0)], NO_EOS)
    assert changed[0].tolist() == logits.tolist()


def test_end_and_stop_tokens_are_forbidden_before_min_tokens() -> None:
    logits = torch.zeros(V)
    drawn = support(logits, 200, min_tokens=99, max_tokens=400, stop_token_ids=(5,))
    row = [sequence_of(answer=(0,) * i, min_tokens=99, stop_token_ids=(5,), max_tokens=400) for i in range(99)]
    with_eos = {token.token_id for token in sample(logits.repeat(99, 1), row, frozenset({3}))}
    assert 5 in drawn
    assert with_eos.isdisjoint({3, 5})


def test_end_token_may_come_once_there_are_min_tokens() -> None:
    logits = torch.zeros(V)
    logits[3] = 9.0
    eos = frozenset({3})
    chosen = [one(logits, sequence_of(answer=(0,) * n, min_tokens=2, temperature=0), eos) == 3 for n in range(4)]
    assert chosen == [False, False, True, True]


@pytest.mark.parametrize("kind", [{"temperature": 0}, {"temperature": 1.0}, {"top_k": 3}])
@pytest.mark.parametrize(("bad", "is_fault"), [(math.nan, math.isnan), (-math.inf, math.isfinite)])
def test_row_that_holds_no_number_is_told_and_its_neighbours_are_as_alone(
    kind: dict[str, float], bad: float, is_fault: Callable[[float], bool]
) -> None:
    """One NaN spoils a row; one token that is forbidden does not."""
    logits = torch.randn(3, V)
    sequences = [sequence_of(**kind), sequence_of(**kind), sequence_of(**kind)]
    alone = sample(logits[[0, 2]].clone(), sequences[:2], NO_EOS)
    logits[1, 5] = bad
    tokens = sample(logits.clone(), sequences, NO_EOS)
    assert is_fault(tokens[1].logit)
    assert [tokens[0], tokens[2]] == alone


@pytest.mark.parametrize("kind", [{"temperature": 0}, {"temperature": 1.0}, {"top_k": 3}])
@pytest.mark.parametrize("width", [V, 1024, 1025, 1537, 5000])
def test_row_in_which_every_token_is_forbidden_is_told(kind: dict[str, float], width: int) -> None:
    """Widths beyond two blocks of the running sum, whole and broken: no token lies outside the vocabulary."""
    logits = torch.full((2, width), -math.inf)
    logits[0, 4] = 1.5
    (one, none) = sample(logits, [sequence_of(**kind), sequence_of(**kind)], NO_EOS)
    assert (one.token_id, one.logit, none.logit) == (4, 1.5, -math.inf)
    assert 0 <= none.token_id < width


@pytest.mark.parametrize("kind", [{"temperature": 0}, {"temperature": 1.0}, {"top_k": 3}])
@pytest.mark.parametrize("width", [1025, 1537, 5000])
def test_row_of_nan_names_a_token_of_the_vocabulary(kind: dict[str, float], width: int) -> None:
    (token,) = sample(torch.full((1, width), math.nan), [sequence_of(**kind)], NO_EOS)
    assert math.isnan(token.logit)
    assert 0 <= token.token_id < width


def test_ignored_end_token_is_not_forbidden() -> None:
    logits = torch.zeros(V)
    logits[3] = 9.0
    assert one(logits, sequence_of(min_tokens=2, ignore_eos=True, temperature=0), frozenset({3})) == 3


def test_all_tokens_forbidden_still_gives_a_token() -> None:
    row = sequence_of(min_tokens=2, stop_token_ids=tuple(range(V)))
    assert 0 <= one(torch.zeros(V), row) < V


# Logprobs


@pytest.mark.parametrize("num_top", [0, 1, 5, 20])
def test_logprobs_are_those_of_the_untouched_logits(num_top: int) -> None:
    logits = random_logits(21)
    row = sequence_of(
        answer=(5, 5), logprobs=num_top, temperature=0.4, top_k=2, repetition_penalty=1.8, frequency_penalty=1.0
    )
    (token,) = sample(logits.clone()[None], [row], NO_EOS)
    raw = torch.log_softmax(logits, dim=0)
    best = sorted(range(V), key=lambda t: -float(raw[t]))[:num_top]
    assert token.logprobs is not None
    assert token.logprobs.logprob == pytest.approx(float(raw[token.token_id]))
    assert token.logprobs.top_token_ids == tuple(best)
    assert token.logprobs.top_logprobs == pytest.approx([float(raw[t]) for t in best])


def test_logprobs_are_given_to_those_who_asked() -> None:
    rows = [sequence_of(logprobs=None), sequence_of(logprobs=1), sequence_of(logprobs=None)]
    tokens = sample(random_logits(1).repeat(3, 1), rows, NO_EOS)
    assert [token.logprobs is None for token in tokens] == [True, False, True]


def test_logprobs_of_a_forbidden_token_are_still_the_models() -> None:
    logits = torch.zeros(V)
    (token,) = sample(logits.clone()[None], [sequence_of(min_tokens=1, logprobs=V)], frozenset({3}))
    assert token.logprobs is not None
    assert token.logprobs.top_logprobs == pytest.approx([math.log(1 / V)] * V)


# What stays from step to step


@pytest.mark.parametrize("seed", range(6))
def test_sampler_that_remembers_gives_what_one_without_memory_gives(seed: int) -> None:
    """Rows come, go and change places; each gets the token that it would get from a fresh sampler, alone."""
    draw = random.Random(seed)
    sampler, rows = Sampler(frozenset({3})), [random_row(draw) for _ in range(8)]
    for step in range(30):
        logits = torch.stack([random_logits(100 * step + i) for i in range(len(rows))])
        tokens = sampler.sample(logits.clone(), SampledRows.of(rows), None).tokens()
        assert tokens == [
            sample(row_logits.clone()[None], [row], frozenset({3}))[0]
            for row_logits, row in zip(logits, rows, strict=True)
        ]
        for row, token in zip(rows, tokens, strict=True):
            row.token_ids.append(token.token_id)
        if draw.random() < 0.5:
            rows.pop(draw.randrange(len(rows)))
        if draw.random() < 0.5 or not rows:
            rows.insert(draw.randint(0, len(rows)), random_row(draw))


# Many tokens


LARGE = 6000


def large_logits(seed: int, *, is_tied: bool = False) -> Tensor:
    logits = random_logits(seed, LARGE) * 2
    return (logits * 2).round() / 2 if is_tied else logits


@pytest.mark.parametrize("filters", FILTERS.values(), ids=FILTERS)
@pytest.mark.parametrize("is_tied", [False, True])
def test_choice_among_many_is_that_of_the_slow_reference(filters: dict[str, object], is_tied: bool) -> None:
    for seed in range(4):
        logits = large_logits(seed, is_tied=is_tied)
        sequence = sequence_of(seed=seed, **filters)
        expected, margin = reference_choice(logits, sequence)
        assert one(logits, sequence) == expected or margin < 1e-5


@pytest.mark.parametrize("is_tied", [False, True])
def test_row_among_many_tokens_does_not_depend_on_the_other_rows(is_tied: bool) -> None:
    draw = random.Random(4)
    rows = [random_row(draw) for _ in range(12)] + [sequence_of(seed=9, **filters) for filters in FILTERS.values()]
    logits = torch.stack([large_logits(i, is_tied=is_tied) for i in range(len(rows))])
    together = sample(logits.clone(), rows, NO_EOS)
    assert together == [sample(logits[i : i + 1].clone(), rows[i : i + 1], NO_EOS)[0] for i in range(len(rows))]


@pytest.mark.parametrize("width", [1, 2, 511, 1024, 1025, 1536, 1537, 5000])
def test_certain_token_is_drawn_wherever_it_stands(width: int) -> None:
    for place in {0, width // 2, width - 1}:
        logits = torch.full((width,), -torch.inf)
        logits[place] = 1.0
        assert support(logits, 20) == {place}


# Biased, allowed and bad tokens


def test_bias_is_added_before_the_choice() -> None:
    logits = random_logits(31)
    changed = logits.clone()[None]
    sample(changed, [sequence_of(logit_bias={2: 5.0, 7: -100}, temperature=0)], NO_EOS)
    expected = logits.clone()
    expected[2] += 5.0
    expected[7] -= 100
    assert changed[0].tolist() == pytest.approx(expected.tolist())


def test_only_allowed_tokens_come() -> None:
    assert support(torch.zeros(V), allowed_token_ids=(4, 9, 9)) == {4, 9}


def test_bias_of_a_token_that_is_not_allowed_does_not_bring_it_back() -> None:
    assert support(torch.zeros(V), allowed_token_ids=(4,), logit_bias={5: 100}) == {4}


def test_bad_word_of_one_token_never_comes() -> None:
    assert support(torch.zeros(V), bad_word_token_ids=((3,), (8,))) == set(range(V)) - {3, 8}


@pytest.mark.parametrize(
    ("answer", "is_forbidden"), [((), False), ((5,), False), ((5, 6), True), ((6, 5), False), ((1, 5, 6), True)]
)
def test_bad_word_forbids_its_last_token_after_the_others(answer: tuple[int, ...], is_forbidden: bool) -> None:
    logits = torch.zeros(V)
    logits[7] = 9.0
    row = sequence_of(answer=answer, bad_word_token_ids=((5, 6, 7),), temperature=0)
    assert (one(logits, row) != 7) == is_forbidden


def test_bad_word_does_not_begin_in_the_prompt() -> None:
    logits = torch.zeros(V)
    logits[7] = 9.0
    assert one(logits, sequence_of(prompt=(5, 6), bad_word_token_ids=((5, 6, 7),), temperature=0)) == 7


def test_edits_of_one_row_leave_the_others_alone() -> None:
    logits = random_logits(33).repeat(3, 1)
    edited = sequence_of(allowed_token_ids=(1, 2), logit_bias={1: 3.0}, bad_word_token_ids=((2,),), temperature=0)
    changed = logits.clone()
    tokens = sample(changed, [sequence_of(temperature=0), edited, sequence_of(temperature=0)], NO_EOS)
    assert torch.equal(changed[[0, 2]], logits[[0, 2]])
    assert tokens[1].token_id == 1
