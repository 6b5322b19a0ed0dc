import pytest

from kvasir_cluster.placement import NODE_RESOURCE_AMOUNT, NodeResources, Placement, check_fits, explain_wait, place
from kvasir_protocol.config import PoolConfig
from kvasir_protocol.errors import PlacementError


def node(total, free=None, resource="GPU", **others):
    free = total if free is None else free
    return NodeResources(address="10.0.0.1", total={resource: total, **others}, free={resource: free, **others})


def pool(role="decode", replicas=1, tp=1, pp=1, node_resource=None):
    return PoolConfig(
        role=role,
        replicas=replicas,
        tensor_parallel_size=tp,
        pipeline_parallel_size=pp,
        node_resource=node_resource,
    )


def test_one_rank_asks_for_one_piece_of_the_resource():
    placement = place(PoolConfig(role="decode"), "CPU")
    assert placement.bundles == [{"CPU": 1.0}]
    assert placement.strategy == "STRICT_PACK"


def test_each_pipeline_stage_is_one_bundle_that_holds_its_tensor_parallel_ranks():
    placement = place(pool(tp=4, pp=2), "GPU")
    assert placement.bundles == [{"GPU": 4.0}, {"GPU": 4.0}]
    assert placement.strategy == "PACK"
    assert [placement.bundle_of(rank) for rank in range(8)] == [0, 0, 0, 0, 1, 1, 1, 1]


def test_ranks_are_counted_over_stages():
    assert Placement(resource="GPU", ranks_per_stage=4, num_stages=2).num_ranks == 8


def test_pools_that_fit_are_accepted():
    check_fits([pool("prefill"), pool("decode", replicas=3)], "GPU", [node(2), node(2)])


def test_refusal_names_the_pool_its_need_and_the_largest_free_node():
    with pytest.raises(PlacementError) as refusal:
        check_fits([pool(tp=2)], "GPU", [node(1), node(1)])
    assert str(refusal.value) == (
        'pool "decode" needs 2 GPUs per replica (tensor_parallel_size=2) but the largest free node has 1; '
        "lower tensor_parallel_size or replicas, set engine.device to cpu or add a node"
    )


def test_refusal_says_how_many_replicas_found_a_place():
    with pytest.raises(PlacementError, match="has 0 once 2 of 3 replicas are placed; lower replicas or add a node"):
        check_fits([pool(replicas=3)], "CPU", [node(2, resource="CPU")])


def test_earlier_pools_leave_less_room_for_later_ones():
    with pytest.raises(PlacementError, match='pool "decode"'):
        check_fits([pool("prefill"), pool("decode")], "GPU", [node(1)])


def test_stages_may_lie_on_different_nodes():
    check_fits([pool(tp=2, pp=2)], "GPU", [node(2), node(2)])
    with pytest.raises(PlacementError, match=r"needs 2 x 2 GPUs per replica \(.*pipeline_parallel_size=2\)"):
        check_fits([pool(tp=2, pp=2)], "GPU", [node(3)])


def test_waiting_gang_is_explained_by_what_is_free_now():
    assert "the largest free node has 1" in explain_wait(pool(tp=2), "GPU", [node(8, free=1), node(8, free=0)])


def test_cluster_without_nodes_has_room_for_nothing():
    with pytest.raises(PlacementError, match="the largest free node has 0"):
        check_fits([pool()], "CPU", [])


def test_a_pool_with_hosts_of_its_own_asks_for_a_crumb_of_what_marks_them():
    assert place(pool(tp=2, node_resource="fast"), "GPU").bundles == [{"GPU": 2.0, "fast": NODE_RESOURCE_AMOUNT}]


def test_only_marked_hosts_count_for_a_pool_of_their_own():
    marked = pool(tp=2, node_resource="fast")
    check_fits([marked], "GPU", [node(8), node(2, fast=1)])
    with pytest.raises(PlacementError, match=r"on a node with fast but the largest free node has 1"):
        check_fits([marked], "GPU", [node(8), node(1, fast=1)])


def test_hosts_that_nobody_marked_are_named():
    with pytest.raises(PlacementError, match="on a node with fast but no node offers it"):
        check_fits([pool(node_resource="fast")], "GPU", [node(8)])


def test_a_pool_with_hosts_of_its_own_chooses_first():
    check_fits([pool("prefill"), pool("decode", node_resource="fast")], "GPU", [node(1, fast=1), node(1)])
