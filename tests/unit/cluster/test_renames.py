import pytest

from kvasir_cluster.renames import find_renames, rename_models
from kvasir_protocol.config import ClusterConfig, ModelConfig, PoolConfig


def serving(**paths):
    """A first model, and more with these names and paths."""
    return ClusterConfig(
        model=ModelConfig(path="/first", served_name="first"),
        models=tuple(ModelConfig(path=path, served_name=name) for name, path in paths.items()),
        pools=tuple(PoolConfig(role="mixed", model=name) for name in ("", *paths)),
    )


def test_a_name_that_goes_and_one_that_comes_are_one_model_if_its_weights_are_the_same():
    assert find_renames(serving(small="/s", tiny="/t"), serving(tiny="/t", little="/s")) == {"small": "little"}


@pytest.mark.parametrize(
    ("present", "wanted"),
    [
        (serving(small="/s"), serving(small="/s")),
        (serving(small="/s"), serving(other="/o")),
        (serving(small="/s"), serving(small="/s", again="/s")),
        (serving(small="/s", again="/s"), serving(again="/s")),
        (serving(), serving(second="/first")),
    ],
    ids=["the same", "other weights", "one more", "one less", "the first's weights"],
)
def test_nothing_else_is_a_new_name(present, wanted):
    assert find_renames(present, wanted) == {}


def test_of_two_models_with_the_same_weights_each_gets_one_name():
    assert find_renames(serving(a="/s", b="/s"), serving(c="/s", d="/s")) == {"a": "c", "b": "d"}


def test_a_name_that_differs_in_signs_alone_is_the_models_own():
    assert find_renames(serving(small="/s"), serving(Small="/s")) == {"small": "Small"}


def test_no_model_gets_a_name_that_replicas_of_another_have_in_theirs():
    assert find_renames(serving(small="/s", tiny="/t"), serving(Tiny="/s")) == {}


def test_a_renamed_model_takes_its_pools_with_it():
    assert rename_models(serving(small="/s", tiny="/t"), {"small": "little"}) == serving(little="/s", tiny="/t")
