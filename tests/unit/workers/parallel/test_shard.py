"""Which part of a model a rank has: together all of it, and no rank a query head without its keys."""

import dataclasses

import pytest

from kvasir_protocol.errors import ConfigError
from kvasir_workers.model.spec import DecoderSpec, read_spec
from kvasir_workers.parallel.mesh import GangShape, RankPlace
from kvasir_workers.parallel.shard import ModelShard, cut_model


def spec(num_heads: int = 12, num_kv_heads: int = 4, num_layers: int = 5) -> DecoderSpec:
    return read_spec(
        {
            "architectures": ["LlamaForCausalLM"],
            "vocab_size": 101,
            "hidden_size": 48,
            "intermediate_size": 31,
            "num_hidden_layers": num_layers,
            "num_attention_heads": num_heads,
            "num_key_value_heads": num_kv_heads,
            "head_dim": 4,
            "rms_norm_eps": 1e-5,
            "max_position_embeddings": 64,
        }
    )


def shards(whole: DecoderSpec, tp: int, pp: int = 1) -> list[ModelShard]:
    shape = GangShape(tensor_parallel_size=tp, pipeline_parallel_size=pp)
    return [cut_model(whole, RankPlace(shape, rank)) for rank in range(shape.num_ranks)]


@pytest.mark.parametrize("num_kv_heads", [1, 2, 3, 4, 6, 12])
@pytest.mark.parametrize("tp", [1, 2, 3, 4, 6, 12])
def test_every_query_head_finds_its_keys_on_its_own_rank(num_kv_heads: int, tp: int) -> None:
    """As the attention kernels look for them: equally many query heads to each key head, in order."""
    found = []
    for shard in shards(spec(num_kv_heads=num_kv_heads), tp):
        served = shard.local.num_heads // shard.local.num_kv_heads
        found += [shard.kv.kv_heads[index // served] for index in range(shard.local.num_heads)]
    assert found == [head // (12 // num_kv_heads) for head in range(12)]


@pytest.mark.parametrize(("tp", "num_heads"), [(1, [4]), (2, [2, 2]), (4, [1] * 4), (12, [1] * 12)])
def test_keys_and_values_are_copied_only_where_ranks_are_more_than_heads(tp: int, num_heads: list[int]) -> None:
    assert [len(shard.kv.kv_heads) for shard in shards(spec(), tp)] == num_heads


def test_parts_of_vocabulary_and_gate_are_all_of_them() -> None:
    parts = shards(spec(), 4)
    assert [row for shard in parts for row in shard.vocabulary] == list(range(101))
    assert [row for shard in parts for row in shard.gate] == list(range(31))


def test_stages_have_all_layers_in_order() -> None:
    whole = dataclasses.replace(spec(), windows=(None, 1, 2, 3, 4))
    parts = shards(whole, 1, 3)
    assert [layer for shard in parts for layer in shard.kv.layers] == list(range(5))
    assert [window for shard in parts for window in shard.local.windows] == [None, 1, 2, 3, 4]


def test_only_the_first_stage_has_the_vocabulary_and_only_the_last_the_norm() -> None:
    parts = [shard.part for shard in shards(spec(), 1, 3)]
    assert [part.has_embedding for part in parts] == [True, False, False]
    assert [part.has_head for part in parts] == [True, False, False]
    assert [part.has_norm for part in parts] == [False, False, True]


def test_number_that_does_not_divide_the_heads_is_refused_with_those_that_do() -> None:
    with pytest.raises(ConfigError, match="does not divide the model's 12 heads; set one of 1, 2, 3, 4, 6, 12"):
        shards(spec(), 5)


def test_more_stages_than_layers_are_refused() -> None:
    with pytest.raises(ConfigError, match="pipeline_parallel_size 6 is above the model's 5 layers"):
        shards(spec(), 1, 6)
