import dataclasses

import pytest

from kvasir_cluster.renames import check_same_models, find_renames, rename_models
from kvasir_protocol.config import ClusterConfig, ModelConfig, PoolConfig
from kvasir_protocol.errors import ConfigError


def serving(name="first", /, **paths):
    """A first model of this name, and more with these names and paths."""
    return ClusterConfig(
        model=ModelConfig(path="/first", served_name=name),
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


FIRST = ModelConfig(path="/first", served_name="first")


@pytest.mark.parametrize("change", [{"path": "/other"}, {"dtype": "float32"}, {"quantization": "int8"}])
def test_another_model_is_refused_and_other_settings_of_it_are_not(change):
    present = ClusterConfig(model=FIRST)
    with pytest.raises(
        ConfigError, match=rf"model\.{next(iter(change))} is .* and can't become .*; `kvasir down` first"
    ):
        check_same_models(present, ClusterConfig(model=dataclasses.replace(FIRST, **change)))
    check_same_models(present, ClusterConfig(model=dataclasses.replace(FIRST, served_name="other", max_model_len=99)))


@pytest.mark.parametrize(
    ("present", "wanted"),
    [
        (serving(small="/s"), serving(small="/t")),
        (serving(), serving("main", first="/s")),
        (serving("a", b="/s"), serving("b", a="/s")),
        (serving("a", b="/s"), serving("b")),
    ],
    ids=["a second's own", "the first's old name", "swapped", "the second's old name"],
)
def test_a_name_that_served_can_not_go_to_another_model(present, wanted):
    with pytest.raises(ConfigError, match=r"model\.path is .* and can't become .* for '(small|first|a|b)' while"):
        check_same_models(present, wanted)


def test_the_first_model_may_get_a_new_name_while_a_model_comes_or_goes():
    check_same_models(serving(), serving("main", small="/s"))
    check_same_models(serving(small="/s"), serving("main"))
