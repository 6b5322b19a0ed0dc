import pytest

from kvasir_cluster.lean_ray import API_SERVER, AUTOSCALER, LOG_READER, ray_without


def methods() -> dict[str, object]:
    from ray._private.node import Node

    return {name: getattr(Node, name) for name in (API_SERVER, AUTOSCALER, LOG_READER)}


def test_what_is_left_out_is_a_method_of_rays_node_and_does_nothing() -> None:
    before = methods()
    with ray_without([API_SERVER, AUTOSCALER]):
        within = methods()
        for name in (API_SERVER, AUTOSCALER):
            assert within[name](object(), include_dashboard=False, raise_on_failure=False) is None  # type: ignore[operator]
        assert within[LOG_READER] is before[LOG_READER]
    assert methods() == before


def test_everything_is_back_after_an_error() -> None:
    before = methods()
    with pytest.raises(RuntimeError), ray_without([LOG_READER]):
        raise RuntimeError
    assert methods() == before


def test_a_name_that_a_release_does_not_know_is_no_error() -> None:
    with ray_without(["start_something_else"]):
        pass
