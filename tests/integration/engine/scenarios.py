"""Random days in an engine's life: its settings, and who comes when and wants what."""

import random
from collections.abc import Mapping
from dataclasses import dataclass

from hypothesis import strategies as st

from kvasir_protocol.config import EngineConfig
from kvasir_protocol.ids import RequestId
from kvasir_protocol.request import GenerationRequest, SamplingParams

VOCAB_SIZE = 256
"""A token id is a byte, so that hypothesis draws a text as bytes."""

MAX_ANSWER_TOKENS = 16

_dice = random.Random(17)
DOCUMENTS = tuple(tuple(_dice.choices(range(VOCAB_SIZE), k=80)) for _ in range(3))
"""Texts that prompts begin with: what they share is found in the cache."""

ENGINE_SETTINGS = st.fixed_dictionaries(
    {
        "page_size": st.sampled_from([1, 2, 3, 4, 5, 8, 16]),
        "max_num_seqs": st.sampled_from([1, 2, 3, 4, 8]),
        "max_prefill_chunk_tokens": st.none() | st.integers(1, 12),
        "enable_prefix_caching": st.sampled_from([True, True, True, False]),
        "scheduling_policy": st.sampled_from(["fcfs", "priority", "longest-prefix"]),
        "admission_policy": st.sampled_from(["max-utilization", "max-utilization", "max-utilization", "no-evict"]),
        "fair_share": st.booleans(),
        "overlap": st.booleans(),
    }
)
"""Fields of EngineConfig that must not change a token. A new one is one more line here."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Visit:
    """One caller. Steps are counted from the beginning of the day.

    The prompt: num_shared tokens of a document, or the whole talk of the caller `follows` (if there is one), and tail.
    num_elsewhere: tokens of the answer that another replica gave before. leaves_after: steps until an abort;
    comes_back: what a router does then, the same request after the tokens that it has.
    """

    arrives_at: int
    document: int
    num_shared: int
    tail: bytes
    follows: int | None
    sampling: SamplingParams
    marks: Mapping[str, object]
    num_elsewhere: int
    leaves_after: int | None
    comes_back: bool

    def request(self, name: str, talk: tuple[int, ...], capacity: int) -> GenerationRequest:
        """talk: what was said before, if the caller goes on with it; the prompt is cut so that all fits the pages."""
        beginning = talk or DOCUMENTS[self.document][: self.num_shared]
        prompt = (*beginning, *self.tail) or (1,)
        assert self.sampling.max_tokens is not None, "every visit has a length"
        return GenerationRequest(
            request_id=RequestId(name),
            prompt_token_ids=prompt[: max(1, capacity - self.sampling.max_tokens)],
            sampling=self.sampling,
            **self.marks,  # type: ignore[arg-type]
        )


@dataclass(frozen=True, slots=True)
class TierPages:
    """Pages that fit into host memory, and on disk."""

    host: int
    disk: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Scenario:
    """num_pages may be too few for two callers at once; the longest request just fits."""

    family: str
    settings: Mapping[str, object]
    capacity_tokens: int
    spare_budget: int
    tiers: TierPages | None
    visits: tuple[Visit, ...]

    @property
    def config(self) -> EngineConfig:
        num_seqs = self.settings["max_num_seqs"]
        assert isinstance(num_seqs, int), "drawn as a number"
        return EngineConfig(
            device="cpu",
            max_num_batched_tokens=num_seqs + self.spare_budget,
            max_waiting_requests=None,
            **self.settings,  # type: ignore[arg-type]
        )

    @property
    def num_pages(self) -> int:
        return -(-self.capacity_tokens // self.config.page_size)


_greedy = st.fixed_dictionaries({"temperature": st.just(0.0)})
_seeded = st.fixed_dictionaries(
    {
        "temperature": st.sampled_from([0.7, 1.0, 1.5]),
        "top_p": st.sampled_from([1.0, 1.0, 0.9, 0.5]),
        "top_k": st.sampled_from([0, 0, 1, 5, 40]),
        "min_p": st.sampled_from([0.0, 0.0, 0.05]),
    }
)
_common = st.fixed_dictionaries(
    {
        "seed": st.integers(0, 3),
        "max_tokens": st.integers(1, 3) | st.integers(8, MAX_ANSWER_TOKENS),
        "ignore_eos": st.booleans(),
        # Every seventh token or so ends the answer: ends that nobody could foresee.
        "stop_token_ids": st.sampled_from([(), (), tuple(range(0, VOCAB_SIZE, 7))]),
        "logprobs": st.none() | st.integers(0, 3),
        "prompt_logprobs": st.sampled_from([None, None, None, None, 2]),
    }
)
_sampling = st.builds(lambda how, rest: SamplingParams(**how, **rest), _greedy | _seeded, _common)
_marks = st.fixed_dictionaries(
    {
        "choice_index": st.sampled_from([0, 0, 1]),
        "cache_salt": st.sampled_from(["", "", "", "salt"]),
        "priority": st.integers(-1, 1),
        "tenant": st.sampled_from(["a", "b", "c"]),
        "cache_priority": st.sampled_from([0, 0, 1]),
    }
)
_visits = st.builds(
    Visit,
    arrives_at=st.integers(0, 12),
    document=st.integers(0, len(DOCUMENTS) - 1),
    num_shared=st.integers(0, len(DOCUMENTS[0])),
    tail=st.binary(max_size=16),
    follows=st.none() | st.none() | st.integers(0, 5),
    sampling=_sampling,
    marks=_marks,
    num_elsewhere=st.sampled_from([0, 0, 0, 1, 3]),
    leaves_after=st.none() | st.none() | st.integers(0, 20),
    comes_back=st.booleans(),
)


def scenarios(families: tuple[str, ...]) -> st.SearchStrategy[Scenario]:
    """Everything that must not change what a request is told."""
    return st.builds(
        Scenario,
        family=st.sampled_from(families),
        settings=ENGINE_SETTINGS,
        capacity_tokens=st.integers(MAX_ANSWER_TOKENS + 6, 90),
        spare_budget=st.integers(0, 40),
        tiers=st.none() | st.builds(TierPages, host=st.integers(1, 40), disk=st.sampled_from([0, 1, 100])),
        visits=st.lists(_visits, min_size=4, max_size=10).map(tuple),
    )
