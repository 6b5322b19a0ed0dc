"""Where ranks stand."""

import pytest

from kvasir_protocol.config import PoolConfig
from kvasir_protocol.errors import ConfigError
from kvasir_workers.parallel.mesh import GangShape, RankPlace

SHAPE = GangShape(tensor_parallel_size=2, pipeline_parallel_size=3)


def place(rank: int) -> RankPlace:
    return RankPlace(SHAPE, rank)


def test_ranks_of_a_stage_follow_each_other() -> None:
    assert [(place(rank).stage, place(rank).tensor_rank) for rank in range(6)] == [
        (0, 0), (0, 1), (1, 0), (1, 1), (2, 0), (2, 1)
    ]  # fmt: skip
    assert list(place(3).stage_ranks) == [2, 3]


def test_each_rank_speaks_to_the_one_in_its_place_of_the_next_stage() -> None:
    assert [place(rank).across(1) for rank in range(6)] == [2, 3, 4, 5, 0, 1]
    assert [place(rank).across(-1) for rank in range(6)] == [4, 5, 0, 1, 2, 3]


def test_only_the_ends_are_first_and_last() -> None:
    assert [place(rank).is_first_stage for rank in range(6)] == [True, True, False, False, False, False]
    assert [place(rank).is_last_stage for rank in range(6)] == [False, False, False, False, True, True]


def test_rank_is_named_with_its_place() -> None:
    assert str(place(5)) == "rank 5 (pipeline stage 2, tensor rank 1)"


def test_shape_is_that_of_whatever_names_both_sizes() -> None:
    assert GangShape.of(PoolConfig(role="mixed", tensor_parallel_size=2, pipeline_parallel_size=3)) == SHAPE


def test_gang_without_ranks_is_refused() -> None:
    with pytest.raises(ConfigError, match="at least 1"):
        GangShape(tensor_parallel_size=0)
