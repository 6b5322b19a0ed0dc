"""One rank's part of every step.

    stage 0: embed, its layers ---hidden---> stage 1: its layers ---> ... the last: its layers, norm
         ^                                                                                     |
         +---------------- rows that are sampled or shown <------------------------------------+
         logits, sampling

The rows come back to the first stage because the next step begins there with what was sampled, and because embedding
and head are often one matrix. Each rank sends to the one in its place of the next stage: the hidden states are the same
on all ranks of a stage.
"""

from collections import deque

import torch
from torch import Tensor

from kvasir_kernels.paged_cache import LayerCache, PaddedDecodes
from kvasir_kernels.sampling_dispatch import DecodeInputs
from kvasir_workers.model.decoder import Decoder
from kvasir_workers.parallel.collectives import Collectives
from kvasir_workers.parallel.planned_step import PlannedStep
from kvasir_workers.parallel.shard import ModelShard
from kvasir_workers.parallel.tensor import SharedVocabulary
from kvasir_workers.runner.batch import StepBatch, lay_out
from kvasir_workers.runner.page_copies import copy_tokens


class Stage:
    """A rank's decoder and pages ([L, 2, N, P, K, D]), and its ways to the others. kv: what its pages are of.

    whole: the model. collectives: with the other ranks.
    """

    def __init__(self, decoder: Decoder, pages: Tensor, shard: ModelShard, collectives: Collectives) -> None:
        self.place = shard.place
        self.whole = shard.whole
        self.kv = shard.kv
        self.pages = pages
        self.page_size = pages.shape[3]
        self.vocabulary = SharedVocabulary(decoder, shard, collectives)
        self._decoder = decoder
        self._hidden_size = shard.whole.hidden_size
        self._dtype = decoder.dtype
        self.collectives = collectives
        self._caches = [LayerCache(layer[0], layer[1]) for layer in pages]
        self._cache_scales = decoder.cache_scales
        self._finals: deque[Tensor] = deque()
        self._num_plans = 0

    def next_plan(self) -> int:
        """The number of the plan that is due, counted on: the same on all ranks, whoever leads them at the time."""
        self._num_plans += 1
        return self._num_plans - 1

    def run(self, step: PlannedStep, said: Tensor | None = None) -> None:
        """Compute the step up to where the next stage goes on. said: what the step before sampled, if it is known."""
        batch = lay_out(step.arrays, self.page_size, self.pages.device)
        self.copy_pages(step)
        hidden = self._enter(batch, said)
        update, residual = self._decoder.run_layers(hidden, batch.positions, batch.slots, self._caches, batch.attention)
        if not self.place.is_last_stage:
            self.collectives.send(update + residual, self.place.across(1))
            return
        rows = torch.from_numpy(step.wanted_rows()).to(self.pages.device)
        final = self._decoder.normalise(update, residual)[rows]
        if self.place.is_first_stage:
            self._finals.append(final)
        else:
            self.collectives.send(final, self.place.across(1))

    def copy_pages(self, step: PlannedStep) -> None:
        for copy in step.copies:
            copy_tokens(self.pages, copy, self._cache_scales)

    def decode(self, inputs: DecodeInputs, decodes: PaddedDecodes) -> Tensor | None:
        """What a graph records of a stage that is the whole model: the logits, [S, V] float32, on its first rank."""
        hidden = self.vocabulary.embed(inputs.token_ids)
        ends = self._decoder.run_layers(hidden, inputs.positions, inputs.slots, self._caches, decodes)
        return self.vocabulary.logits(self._decoder.normalise(*ends))

    def _enter(self, batch: StepBatch, said: Tensor | None) -> Tensor:
        if not self.place.is_first_stage:
            return self.collectives.receive(self._room(len(batch.token_ids)), self.place.across(-1))
        if batch.coming is not None:
            coming = torch.empty_like(batch.coming.rows) if said is None else said[batch.coming.rows]
            batch.token_ids[batch.coming.places] = self.collectives.spread(coming)
        return self.vocabulary.embed(batch.token_ids)

    def take_final(self, step: PlannedStep) -> Tensor:
        """On the first stage, the wanted rows of the oldest step of which they were not taken yet: [R, E]."""
        if self.place.is_last_stage:
            return self._finals.popleft()
        return self.collectives.receive(self._room(len(step.wanted_rows())), self.place.across(-1))

    def _room(self, num_rows: int) -> Tensor:
        return torch.empty(num_rows, self._hidden_size, dtype=self._dtype, device=self.pages.device)

    # Logits whose rows only the leader knows. Its followers ask until it says that there are no more.

    def ask_logits(self, hidden: Tensor) -> Tensor:
        """On the leader: the logits of hidden [R, E], with the help of all ranks of the first stage."""
        self._announce(len(hidden))
        self.collectives.spread(hidden.contiguous())
        logits = self.vocabulary.logits(hidden)
        assert logits is not None, f"{self.place} is no leader"
        return logits

    def end_asking(self) -> None:
        self._announce(0)

    def help_with_logits(self) -> None:
        """On its followers: until the leader ends it."""
        while num_rows := self._hear_number():
            self.vocabulary.logits(self.collectives.spread(self._room(num_rows)))

    def _announce(self, number: int) -> None:
        self.collectives.spread(self._number(number))

    def _hear_number(self) -> int:
        number = self.collectives.spread(self._number(0))
        self.collectives.finish("a broadcast")
        return int(number.item())

    def _number(self, number: int) -> Tensor:
        return torch.tensor([number], dtype=torch.int64, device=self.pages.device)

    def close(self) -> None:
        """Let go of the other ranks."""
        self.collectives.close()
