"""One layer on several ranks, applied to a decoder from outside.

Each rank has some heads and some of the gate's width (Shoeybi et al., *Megatron-LM*, 2019): what it adds to the
residual is a part of a sum over the ranks. The vocabulary is cut, too: a token's vector is on one rank, and each rank
knows the logits of its own tokens.
"""

import torch
from torch import Tensor, nn

from kvasir_workers.model.decoder import Decoder, DecoderLayer
from kvasir_workers.parallel.collectives import Collectives
from kvasir_workers.parallel.shard import ModelShard, share


def join_ranks(decoder: Decoder, collectives: Collectives) -> None:
    """From now on attention and feed-forward yield their sum over the stage."""

    def add_up(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        return collectives.add_up(output)

    if collectives.place.shape.tensor_parallel_size > 1:
        for layer in decoder.layers:
            assert isinstance(layer, DecoderLayer)
            layer.attention.output.register_forward_hook(add_up)
            layer.feed_forward.down.register_forward_hook(add_up)


class SharedVocabulary:
    """Embedding and head of the first stage. All its ranks call each method together."""

    def __init__(self, decoder: Decoder, shard: ModelShard, collectives: Collectives) -> None:
        self._decoder = decoder
        self._own = shard.vocabulary
        self._size = shard.whole.vocab_size
        self._num_ranks = shard.place.shape.tensor_parallel_size
        self._collectives = collectives

    def embed(self, token_ids: Tensor) -> Tensor:
        """The vectors of the tokens [T]: [T, E]."""
        if self._num_ranks == 1:
            whole: Tensor = self._decoder.embedding(token_ids)
            return whole
        rows = token_ids - self._own.start
        is_foreign = (rows < 0) | (rows >= len(self._own))
        vectors: Tensor = self._decoder.embedding(rows.masked_fill(is_foreign, 0))
        return self._collectives.add_up(vectors.masked_fill(is_foreign[:, None], 0))

    def logits(self, hidden: Tensor) -> Tensor | None:
        """The logits of hidden [R, E]: [R, V] float32 at the stage's first rank, None at the others."""
        own = self._decoder.logits(hidden)
        if self._num_ranks == 1:
            return own
        # All send as many, those with one token less a column that nobody reads.
        widest = -(-self._size // self._num_ranks)
        padded = nn.functional.pad(own, (0, widest - own.shape[1]))
        parts = self._collectives.collect(padded)
        if not parts:
            return None
        widths = [len(share(self._size, self._num_ranks, rank)) for rank in range(self._num_ranks)]
        return torch.cat([part[:, :width] for part, width in zip(parts, widths, strict=True)], dim=1)
