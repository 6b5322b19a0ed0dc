"""A mask falls on its own row and on no other."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import nullcontext

import numpy as np
import pytest
import torch

from kvasir_kernels.native.choice import without_native_kernels
from kvasir_protocol.request import SamplingParams
from kvasir_workers.grammar.state import GrammarState
from kvasir_workers.grammar.token_table import TokenTable
from kvasir_workers.runner.grammar_mask import GrammarMasks, StructuredRow, apply_masks, make_masks
from kvasir_workers.sequence import Sequence
from tests.unit.workers.fakes import make_request
from tests.unit.workers.grammar.walks import compile_here
from tests.unit.workers.runner.fresh_sampler import sample

V = 2050
EOS = frozenset({0, 2})

StateOf = Callable[[str], GrammarState]
TokenOf = Callable[[str], int]


@pytest.fixture
def state_of(table: TokenTable) -> StateOf:
    """The beginning of a regex."""
    return lambda pattern: compile_here(table, "regex", pattern).start()


@pytest.fixture(scope="module")
def token_of(table: TokenTable) -> TokenOf:
    ids = {table.bytes_of([token_id]).decode("latin-1"): token_id for token_id in range(2048)}
    return ids.__getitem__


def structured_row(row: int, state: GrammarState, num_generated: int = 0, **sampling: object) -> StructuredRow:
    return StructuredRow(row, state, num_generated, SamplingParams(**sampling))  # type: ignore[arg-type]


def allowed_after(logits: torch.Tensor, row: int) -> set[int]:
    return set(torch.isfinite(logits[row]).nonzero()[:, 0].tolist())


def sequence(name: str, state: GrammarState | None, **sampling: object) -> Sequence:
    params = SamplingParams(**{"max_tokens": 9, "seed": 3, **sampling})  # type: ignore[arg-type]
    made = Sequence(make_request(name, [1, 2], sampling=params))
    made.grammar = state
    return made


@pytest.fixture(params=["native", "torch"])
def kernels(request: pytest.FixtureRequest) -> Iterator[None]:
    """With the C++ kernels of this machine, and with torch alone."""
    with without_native_kernels() if request.param == "torch" else nullcontext():
        yield


# Made


def test_masks_are_what_each_grammar_allows(state_of: StateOf) -> None:
    states = [state_of(pattern) for pattern in ("[ab]+", "x?", "[^y]*", "ab|cd")]
    masks = make_masks([structured_row(3 * row, state) for row, state in enumerate(states)], EOS)
    bits = np.unpackbits(masks.bits.numpy().view(np.uint8), axis=1, count=V, bitorder="little")
    assert masks.rows == (0, 3, 6, 9)
    assert (bits == np.stack([state.allowed() for state in states])).all()


def test_below_min_tokens_an_end_is_allowed_only_if_nothing_else_is(state_of: StateOf, token_of: TokenOf) -> None:
    ended = state_of("a")
    ended.accept([token_of("a")])
    rows = [
        structured_row(0, state_of("a?"), min_tokens=2),
        structured_row(1, ended, min_tokens=2),
        structured_row(2, state_of("a|b"), min_tokens=2, stop_token_ids=(token_of("b"),)),
        structured_row(3, state_of("a?"), 2, min_tokens=2),
    ]
    logits = torch.randn(4, V)
    apply_masks(logits, make_masks(rows, EOS))
    only_a = {token_of("a")}
    assert [allowed_after(logits, row) for row in range(4)] == [only_a, set(EOS), only_a, only_a | EOS]


def test_failed_grammar_allows_everything_and_its_neighbours_what_they_would_alone(
    state_of: StateOf, token_of: TokenOf
) -> None:
    failed = state_of("a+")
    failed.accept([token_of("x")])
    logits = torch.randn(3, V)
    rows = [structured_row(0, state_of("a|ab")), structured_row(1, failed), structured_row(2, state_of("a|ab"))]
    apply_masks(logits, make_masks(rows, EOS))
    beginnings = {token_of("a"), token_of("ab")}
    assert [allowed_after(logits, row) for row in range(3)] == [beginnings, set(range(V)), beginnings]


# Applied


def random_masks(num_rows: int, width: int, rows: Iterable[int]) -> tuple[GrammarMasks, torch.Tensor]:
    """And the same, [R, V]."""
    allowed = torch.rand(num_rows, width) < 0.5
    words = np.zeros((num_rows, -(-width // 32) * 4), dtype=np.uint8)
    packed = np.packbits(allowed.numpy(), axis=1, bitorder="little")
    words[:, : packed.shape[1]] = packed
    return GrammarMasks(tuple(rows), torch.from_numpy(words.view(np.int32))), allowed


@pytest.mark.parametrize("width", [1, 31, 32, 33, 500, 2050, 70_001])
@pytest.mark.parametrize("rows", [(0,), (3,), (0, 1, 2, 3, 4, 5, 6, 7), (1, 2, 3, 4), (0, 2, 3, 7), (6, 7)])
@pytest.mark.usefixtures("kernels")
def test_each_row_is_lowered_where_its_mask_forbids(width: int, rows: tuple[int, ...]) -> None:
    """The widest goes in several blocks where there is no C++ kernel."""
    before = torch.randn(8, width)
    masks, allowed = random_masks(len(rows), width, rows)
    expected, logits = before.clone(), before.clone()
    expected[list(rows)] = before[list(rows)].masked_fill(~allowed, -torch.inf)
    apply_masks(logits, masks)
    assert torch.equal(logits, expected)


@pytest.mark.usefixtures("kernels")
def test_logits_that_are_no_numbers_are_not_hidden() -> None:
    logits = torch.tensor([[torch.nan, torch.nan, torch.inf, torch.inf, -torch.inf, -torch.inf]])
    apply_masks(logits, GrammarMasks((0,), torch.tensor([[0b010101]], dtype=torch.int32)))
    assert torch.isnan(logits[0, :2]).all()
    assert logits[0, 2:].tolist() == [torch.inf, -torch.inf, -torch.inf, -torch.inf]


# Sampled


def test_structured_row_samples_what_is_allowed_and_its_neighbours_what_they_would_alone(
    state_of: StateOf, token_of: TokenOf
) -> None:
    options = [{"temperature": 0}, {"temperature": 1.0}, {"temperature": 2.0, "top_k": 3}, {"min_p": 0.9}]
    for option in options:
        logits = torch.randn(3, V)
        free = [sequence("a", None, **option), sequence("c", None, **option)]
        alone = [token.token_id for token in sample(logits[[0, 2]].clone(), free, EOS)]
        batch = sample(logits.clone(), [free[0], sequence("b", state_of("[xy]"), **option), free[1]], EOS)
        assert [batch[0].token_id, batch[2].token_id] == alone
        assert batch[1].token_id in (token_of("x"), token_of("y"))


def test_logprobs_are_those_of_the_model_before_the_mask(state_of: StateOf) -> None:
    (token,) = sample(torch.zeros(1, V), [sequence("a", state_of("a"), logprobs=5)], EOS)
    assert token.logprobs is not None
    assert len(set(token.logprobs.top_logprobs)) == 1


@pytest.mark.parametrize(("pattern", "chosen"), [("a?", "a"), ("a|b", "b"), ("", None)])
def test_grammar_decides_whether_an_end_may_come_before_min_tokens(
    state_of: StateOf, token_of: TokenOf, pattern: str, chosen: str | None
) -> None:
    """Its neighbour, who has no grammar, may not end."""
    logits = torch.zeros(V)
    logits[[0, token_of("b"), token_of("a"), 7]] = torch.tensor([9.0, 8.0, 7.0, 6.0])
    sequences = (sequence("a", state_of(pattern), min_tokens=2, temperature=0), sequence("b", None, min_tokens=2))
    first, second = sample(logits.repeat(2, 1), sequences, EOS)
    assert first.token_id == (token_of(chosen) if chosen is not None else 0)
    assert second.token_id not in EOS
