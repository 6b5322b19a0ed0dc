"""How many pages a replica gets, and when it gets none."""

from dataclasses import replace

import pytest
import torch

from kvasir.demo import demo_model_path
from kvasir_protocol.config import EngineConfig
from kvasir_protocol.errors import ConfigError, OutOfMemory
from kvasir_workers.memory import (
    DEFAULT_FULL_SEQUENCES,
    Footprint,
    FreeMemory,
    MemoryPlan,
    check_host_cache,
    free_memory,
    graph_bytes,
    plan_memory,
    seen_bytes,
)
from kvasir_workers.model.loader import load_spec

MIB = 2**20
DEMO_MODEL = demo_model_path()


def plan(
    free_bytes: int,
    *,
    weight_bytes: int = 10 * MIB,
    page_bytes: int = MIB,
    max_positions: int = 160,
    max_model_len: int | None = None,
    kv_cache_bytes: int | None = None,
    device_type: str = "cpu",
    host_cache_bytes: int = 0,
) -> MemoryPlan:
    footprint = Footprint(weight_bytes=weight_bytes, page_bytes=page_bytes, max_positions=max_positions)
    config = EngineConfig(page_size=16, kv_cache_bytes=kv_cache_bytes, host_cache_bytes=host_cache_bytes)
    return plan_memory(footprint, config, max_model_len, FreeMemory(device_type=device_type, num_bytes=free_bytes))


def test_plenty_of_memory_gives_room_for_some_full_sequences() -> None:
    assert plan(10**12) == MemoryPlan(num_pages=10 * DEFAULT_FULL_SEQUENCES, max_sequence_tokens=160)


def test_cpu_pages_take_a_quarter_of_what_the_weights_leave() -> None:
    assert plan(50 * MIB).num_pages == 10


def test_gpu_pages_take_most_of_what_the_weights_leave() -> None:
    assert plan(50 * MIB, device_type="cuda").num_pages == 34


def test_host_cache_takes_its_part_of_a_cpus_memory_but_not_of_a_gpus() -> None:
    assert plan(50 * MIB, host_cache_bytes=20 * MIB).num_pages == 5
    assert plan(50 * MIB, host_cache_bytes=20 * MIB, device_type="cuda").num_pages == 34


def test_host_cache_that_leaves_no_room_is_named() -> None:
    with pytest.raises(OutOfMemory, match=r"a host cache of 40\.0 MiB"):
        plan(50 * MIB, host_cache_bytes=40 * MIB)


def test_host_cache_beside_a_gpu_must_fit_into_the_hosts_memory() -> None:
    free = FreeMemory(device_type="cpu", num_bytes=10 * MIB)
    check_host_cache(EngineConfig(host_cache_bytes=10 * MIB), free)
    with pytest.raises(OutOfMemory, match=r"asks for 11\.0 MiB of host memory, 10\.0 MiB are free"):
        check_host_cache(EngineConfig(host_cache_bytes=11 * MIB), free)


def test_budget_in_bytes_is_taken_as_it_is() -> None:
    assert plan(10**12, kv_cache_bytes=500 * MIB + 5).num_pages == 500


def test_sequence_is_no_longer_than_all_pages_together() -> None:
    assert plan(26 * MIB) == MemoryPlan(num_pages=4, max_sequence_tokens=64)


def test_sequence_is_no_longer_than_was_asked() -> None:
    assert plan(10**12, max_model_len=100).max_sequence_tokens == 100


def test_asked_length_that_has_no_room_is_out_of_memory_with_the_numbers() -> None:
    with pytest.raises(OutOfMemory, match=r"weights of 10\.0 MiB and 7 pages of 1\.0 MiB .* 26\.0 MiB are free"):
        plan(26 * MIB, max_model_len=100)


def test_length_beyond_the_model_is_refused() -> None:
    with pytest.raises(ConfigError, match="max_model_len 161 is beyond the model's 160 positions"):
        plan(10**12, max_model_len=161)


@pytest.mark.parametrize("free_bytes", [0, 5 * MIB, 10 * MIB, 13 * MIB])
def test_weights_without_room_for_a_page_are_out_of_memory(free_bytes: int) -> None:
    with pytest.raises(OutOfMemory, match="do not fit"):
        plan(free_bytes)


@pytest.mark.parametrize("kv_cache_bytes", [1, MIB - 1])
def test_budget_for_less_than_a_page_is_out_of_memory(kv_cache_bytes: int) -> None:
    with pytest.raises(OutOfMemory, match="do not fit"):
        plan(10**12, kv_cache_bytes=kv_cache_bytes)


def test_budget_beyond_what_is_free_is_out_of_memory() -> None:
    with pytest.raises(OutOfMemory, match="do not fit"):
        plan(20 * MIB, kv_cache_bytes=11 * MIB)


def test_free_memory_of_this_host_is_known() -> None:
    free = free_memory(torch.device("cpu"))
    assert free.device_type == "cpu"
    assert 0 < free.num_bytes < 2**60


@pytest.mark.parametrize(("device_type", "num_pages"), [("cpu", 5), ("cuda", 17)])
def test_a_full_step_takes_its_part_of_the_room(device_type: str, num_pages: int) -> None:
    footprint = Footprint(weight_bytes=10 * MIB, page_bytes=MIB, max_positions=160, step_bytes=20 * MIB)
    free = FreeMemory(device_type=device_type, num_bytes=50 * MIB)
    assert plan_memory(footprint, EngineConfig(page_size=16), None, free).num_pages == num_pages
    with pytest.raises(OutOfMemory, match=r"weights of 10\.0 MiB, tensors of a full step of 45\.0 MiB and 1 pages"):
        plan_memory(replace(footprint, step_bytes=45 * MIB), EngineConfig(page_size=16), None, free)


def test_graphs_take_their_part_of_the_room() -> None:
    footprint = Footprint(weight_bytes=10 * MIB, page_bytes=MIB, max_positions=160, graph_bytes=20 * MIB)
    config, free = EngineConfig(page_size=16), FreeMemory(device_type="cuda", num_bytes=50 * MIB)
    assert plan_memory(footprint, config, None, free).num_pages == 17


def test_a_table_for_penalties_takes_its_part_of_the_room_with_graphs_and_without() -> None:
    spec, config = load_spec(DEMO_MODEL), EngineConfig(page_size=16, max_num_seqs=256)
    gpu = seen_bytes(spec, config, torch.device("cuda"))
    assert gpu == 256 * spec.vocab_size * 4
    assert seen_bytes(spec, config, torch.device("cpu")) == 0
    footprint = Footprint(weight_bytes=10 * MIB, page_bytes=MIB, max_positions=160, seen_bytes=20 * MIB)
    free = FreeMemory(device_type="cuda", num_bytes=50 * MIB)
    assert plan_memory(footprint, EngineConfig(page_size=16), None, free).num_pages == 17
    with pytest.raises(OutOfMemory, match=r"weights of 10\.0 MiB, a table for penalties of 45\.0 MiB and 1 pages"):
        plan_memory(replace(footprint, seen_bytes=45 * MIB), EngineConfig(page_size=16), None, free)


def test_graphs_that_leave_no_room_are_named() -> None:
    footprint = Footprint(weight_bytes=10 * MIB, page_bytes=MIB, max_positions=160, graph_bytes=40 * MIB)
    free = FreeMemory(device_type="cuda", num_bytes=50 * MIB)
    with pytest.raises(OutOfMemory, match=r"weights of 10\.0 MiB, graphs of 40\.0 MiB and 1 pages"):
        plan_memory(footprint, EngineConfig(page_size=16), None, free)


def test_more_sequences_and_longer_ones_make_larger_graphs() -> None:
    spec, dtype = load_spec(DEMO_MODEL), torch.bfloat16
    few, many = EngineConfig(max_num_seqs=8), EngineConfig(max_num_seqs=256)
    assert graph_bytes(spec, dtype, few, 100) < graph_bytes(spec, dtype, many, 100)
    assert graph_bytes(spec, dtype, few, 100) < graph_bytes(spec, dtype, few, 10_000)
