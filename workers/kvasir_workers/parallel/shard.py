"""Which part of a model a rank has. Pure numbers: nothing is loaded to know them.

query heads   0 1 2 3 | 4 5 6 7      tp=2, two key/value heads: each rank has its own
kv heads      0       | 1

query heads   0 1 | 2 3 | 4 5 | 6 7   tp=4, two key/value heads: two ranks have copies of each
kv heads      0   | 0   | 1   | 1
"""

from dataclasses import dataclass, replace
from math import gcd

import torch

from kvasir_workers.model.decoder import Decoder, DecoderPart
from kvasir_workers.model.spec import DecoderSpec
from kvasir_workers.parallel.mesh import RankPlace, check_shape


@dataclass(frozen=True, slots=True, kw_only=True)
class KvShard:
    """What of all keys and values a rank's pages hold: [layers, 2, N, P, kv_heads, D].

    layers: of the model's. kv_heads: the model's head at each place of the heads' axis, ascending; one may be there
    twice, and on other ranks of the stage, too.
    """

    place: RankPlace
    layers: range
    kv_heads: tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelShard:
    """A rank's part. whole: the model; local: the decoder of this rank alone, as a spec of its own."""

    place: RankPlace
    whole: DecoderSpec
    local: DecoderSpec
    part: DecoderPart
    kv: KvShard
    query_heads: range
    gate: range
    vocabulary: range


def cut_model(spec: DecoderSpec, place: RankPlace) -> ModelShard:
    """The rank's part of the model. Raises ConfigError if the model can't be cut like this."""
    check_shape(spec, place.shape)
    size, rank = place.shape.tensor_parallel_size, place.tensor_rank
    query_heads = share(spec.num_heads, size, rank)
    gate, vocabulary = share(spec.intermediate_size, size, rank), share(spec.vocab_size, size, rank)
    layers = share(spec.num_layers, place.shape.pipeline_parallel_size, place.stage)
    kv = KvShard(place=place, layers=layers, kv_heads=_kv_heads(spec, query_heads))
    local = replace(
        spec,
        vocab_size=len(vocabulary),
        intermediate_size=len(gate),
        num_layers=len(layers),
        num_heads=len(query_heads),
        num_kv_heads=len(kv.kv_heads),
        windows=spec.windows[layers.start : layers.stop],
    )
    # The head is where the embedding is: tied, they are one matrix, and what is sampled is needed there next.
    part = DecoderPart(has_embedding=place.is_first_stage, has_norm=place.is_last_stage, has_head=place.is_first_stage)
    return ModelShard(
        place=place,
        whole=spec,
        local=local,
        part=part,
        kv=kv,
        query_heads=query_heads,
        gate=gate,
        vocabulary=vocabulary,
    )


def layer_matrices(shard: ModelShard, dtype: torch.dtype) -> tuple[tuple[int, int], ...]:
    """Inputs and outputs of the matrices in a rank's layers, each once."""
    decoder = Decoder(shard.local, dtype, torch.device("meta"), shard.part)
    shapes = {matrix.weight.shape for name, matrix in decoder.matrices().items() if name.startswith("layers.")}
    return tuple(sorted((shape[1], shape[0]) for shape in shapes))


def share(number: int, num_parts: int, index: int) -> range:
    """One of the parts of so many things in a row, as even as can be."""
    return range(number * index // num_parts, number * (index + 1) // num_parts)


def _kv_heads(spec: DecoderSpec, query_heads: range) -> tuple[int, ...]:
    """Those that the query heads read, each as often as needed for all to serve equally many of them."""
    group = spec.num_heads // spec.num_kv_heads
    served = gcd(group, len(query_heads))
    return tuple(head // group for head in range(query_heads.start, query_heads.stop, served))
