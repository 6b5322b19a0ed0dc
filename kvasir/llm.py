"""The engine without a server: a model in this process, prompts in, answers out."""

import gc
import math
import secrets
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, replace
from itertools import count
from pathlib import Path
from types import TracebackType
from typing import Any, Self, get_args

import torch
from tqdm import tqdm

from kvasir.beam_search import Beam, BeamSearch, BeamSearchParams, FinishedBeam
from kvasir.choice import Choice, request_output
from kvasir.demo import DEMO_MODEL_NAME, demo_model_path
from kvasir.driver import Driver
from kvasir.outputs import (
    BeamSearchOutput,
    BeamSearchSequence,
    EmbeddingOutput,
    EmbeddingRequestOutput,
    EngineStats,
    RequestOutput,
)
from kvasir.per_prompt import params_per_prompt, priorities_per_prompt
from kvasir.prompts import Prompt, TokenPrompt, read_prompts
from kvasir.stream import Stream
from kvasir_protocol.config import (
    Device,
    DType,
    EngineConfig,
    KvCacheDType,
    ModelConfig,
    QuantizationName,
    SchedulingPolicyName,
)
from kvasir_protocol.errors import ContextTooLong, InvalidRequest
from kvasir_protocol.ids import RequestId
from kvasir_protocol.request import MAX_LOGPROBS, MAX_SEED, GenerationRequest, Pooling, SamplingParams
from kvasir_router.tokenise import TextCodec
from kvasir_workers.engine_directory.manifest import shape_for
from kvasir_workers.kv.offload.open_tiers import open_tiers
from kvasir_workers.load import build_engine, grammar_compiler
from kvasir_workers.parallel.local_gang import load_gang, share_cores
from kvasir_workers.parallel.mesh import GangShape
from kvasir_workers.ready import make_ready

Message = Mapping[str, Any]
"""One chat message, such as {"role": "user", "content": "Hello"}."""


class LLM:
    """A model in this process; vLLM's shape. model None is the embedded demo model.

    With tensor_parallel_size x pipeline_parallel_size above 1 this process leads, and has the others as children; both
    None: 1, or what an engine directory was built for.
    Not thread-safe. `with LLM() as llm:` gives its memory back at the end.
    Raises CheckpointError, ConfigError, OutOfMemory or RankLost if the model can't be had.
    """

    def __init__(
        self,
        model: str | Path | None = None,
        *,
        dtype: DType = "auto",
        quantization: QuantizationName | None = None,
        device: Device = "auto",
        max_model_len: int | None = None,
        max_num_seqs: int = 256,
        max_num_batched_tokens: int | None = None,
        block_size: int = 16,
        kv_cache_memory_bytes: int | None = None,
        kv_cache_dtype: KvCacheDType = "auto",
        enable_prefix_caching: bool = True,
        host_cache_memory_bytes: int = 0,
        disk_cache_bytes: int = 0,
        disk_cache_path: str | None = None,
        scheduling_policy: SchedulingPolicyName = "fcfs",
        overlap: bool | None = None,
        enforce_eager: bool = False,
        num_threads: int | None = None,
        tensor_parallel_size: int | None = None,
        pipeline_parallel_size: int | None = None,
    ) -> None:
        directory = Path(model) if model is not None else demo_model_path()
        name = directory.name if model is not None else DEMO_MODEL_NAME
        config = EngineConfig(
            device=device,
            page_size=block_size,
            kv_cache_bytes=kv_cache_memory_bytes,
            kv_cache_dtype=kv_cache_dtype,
            max_num_seqs=max_num_seqs,
            max_num_batched_tokens=max_num_batched_tokens,
            enable_prefix_caching=enable_prefix_caching,
            host_cache_bytes=host_cache_memory_bytes,
            disk_cache_bytes=disk_cache_bytes,
            disk_cache_path=disk_cache_path,
            scheduling_policy=scheduling_policy,
            overlap=overlap,
            enforce_eager=enforce_eager,
            max_waiting_requests=None,  # the caller, who is here, may hand over as many prompts as it likes
            num_threads=num_threads,
        )
        shape = shape_for(directory, tensor_parallel_size, pipeline_parallel_size)
        if (config := share_cores(config, shape)).num_threads is not None:
            torch.set_num_threads(config.num_threads)
        source = ModelConfig(
            path=str(directory), served_name=name, dtype=dtype, quantization=quantization, max_model_len=max_model_len
        )
        self._request_numbers = count()
        self._load(source, config, shape)

    def _load(self, model: ModelConfig, config: EngineConfig, shape: GangShape) -> None:
        """Nothing that was opened stays open if the rest can't be had."""
        directory = Path(model.path)
        with ExitStack() as opened:
            gang, loaded = load_gang(model, config, shape)
            if gang is not None:
                opened.callback(gang.close)
            loaded = make_ready(loaded, config)
            self._codec = TextCodec.from_directory(directory)
            self._limits = loaded.limits
            self._num_pages = loaded.pages.shape[2]
            if (tiers := open_tiers(loaded.pages, config)) is not None:
                opened.callback(tiers.tiers.close)
            engine = build_engine(loaded, config, opened=tiers)
            self._driver = Driver(engine, grammar_compiler(directory, loaded.limits), self._codec)
            opened.callback(self._driver.close)
            self._opened = opened.pop_all()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Give the memory back: weights and pages. Nothing can be asked of this LLM any more. Idempotent."""
        self._opened.close()
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()

    def get_stats(self) -> EngineStats:
        """How the engine fares: its queues, its pages, and its totals since the start."""
        engine = self._driver.engine
        return EngineStats(
            num_running=engine.num_running,
            num_waiting=engine.num_waiting,
            num_pages=self._num_pages,
            num_used_pages=engine.num_used_pages,
            counters=engine.counters(),
        )

    def get_default_sampling_params(self) -> SamplingParams:
        """What the model's generation_config.json suggests."""
        return SamplingParams(**asdict(self._codec.defaults))

    def generate(
        self,
        prompts: Prompt | Sequence[Prompt],
        sampling_params: SamplingParams | Sequence[SamplingParams] | None = None,
        *,
        use_tqdm: bool = True,
        priority: Sequence[int] | None = None,
    ) -> list[RequestOutput]:
        """Answers in the order of the prompts. Raises InvalidRequest before anything runs if one can't be served.

        priority: one per prompt, lower is computed earlier; of use with scheduling_policy="priority".
        """
        return self._answer(read_prompts(prompts, self._codec), sampling_params, priority, use_tqdm=use_tqdm)

    def chat(
        self,
        messages: Sequence[Message] | Sequence[Sequence[Message]],
        sampling_params: SamplingParams | Sequence[SamplingParams] | None = None,
        *,
        use_tqdm: bool = True,
    ) -> list[RequestOutput]:
        """Answers to one conversation or to several, through the model's chat template."""
        if not messages:
            raise InvalidRequest("there are no messages; give at least one", "messages")
        conversations = [messages] if isinstance(messages[0], Mapping) else messages
        texts = [self._codec.render_chat(conversation) for conversation in conversations]  # type: ignore[arg-type]
        prompts = [TokenPrompt(text, tuple(self._codec.encode(text, add_special_tokens=False))) for text in texts]
        return self._answer(prompts, sampling_params, None, use_tqdm=use_tqdm)

    def stream(self, prompt: Prompt, sampling_params: SamplingParams | None = None) -> Stream:
        """One prompt's answer while it comes. Closing the iterator (or dropping it) ends the request.

        Several streams may be open at once, and other calls be made meanwhile: each step serves all of them.
        Raises InvalidRequest here and now if the prompt can't be served.
        """
        token_prompts = read_prompts(prompt, self._codec)
        if len(token_prompts) != 1:
            raise InvalidRequest(f"a stream answers one prompt, got {len(token_prompts)}", "prompt")
        params = sampling_params if sampling_params is not None else self.get_default_sampling_params()
        driver = self._driver
        return Stream(driver.submit(self._requests(token_prompts[0], params)), driver.step, driver.forget)

    def encode(
        self,
        prompts: Prompt | Sequence[Prompt],
        *,
        pooling: Pooling = "mean",
        normalize: bool = False,
        use_tqdm: bool = True,
    ) -> list[EmbeddingRequestOutput]:
        """Embeddings from the model's final hidden states (after its last norm), in the order of the prompts.

        pooling: the mean over the prompt's tokens, the last token's or the first's ("cls"). normalize: to length 1.
        """
        if pooling not in get_args(Pooling):
            raise InvalidRequest(f"pooling must be one of {', '.join(get_args(Pooling))}, got {pooling!r}", "pooling")
        token_prompts = read_prompts(prompts, self._codec)
        requests = [self._pooling_request(prompt, pooling) for prompt in token_prompts]
        choices = self._driver.submit(requests)
        with self._driver.abort_at_end(choices):
            self._driver.run(choices, "Embeddings", use_tqdm=use_tqdm)
        return [
            EmbeddingRequestOutput(
                request_id=choice.request.request_id,
                prompt=prompt.text,
                prompt_token_ids=list(prompt.token_ids),
                outputs=EmbeddingOutput(_normalized(choice.embedding) if normalize else list(choice.embedding)),
                num_cached_tokens=choice.num_cached_tokens,
                metrics=Choice.metrics([choice]),
            )
            for prompt, choice in zip(token_prompts, choices, strict=True)
        ]

    def beam_search(
        self, prompts: Prompt | Sequence[Prompt], params: BeamSearchParams, *, use_tqdm: bool = False
    ) -> list[BeamSearchOutput]:
        """The beam_width best answers to each prompt, as transformers finds them.

        Every round computes one token of each beam. Beams share all full pages through the prefix cache; the page that
        is not full is copied for those who part there, and kept by one that goes on alone. Without the prefix cache
        each round computes everything anew.
        """
        token_prompts = read_prompts(prompts, self._codec)
        for prompt in token_prompts:
            self._check_room(prompt, params.max_tokens)
        eos_token_ids = frozenset() if params.ignore_eos else self._limits.eos_token_ids
        searches = [BeamSearch(params, eos_token_ids) for _ in token_prompts]
        if searches and searches[0].num_candidates > MAX_LOGPROBS:
            most = MAX_LOGPROBS - len(eos_token_ids)
            raise InvalidRequest(
                f"beam_width may be up to {most} with this model, got {params.beam_width}", "beam_width"
            )
        with tqdm(total=params.max_tokens, desc="Beam search", disable=not use_tqdm) as progress:
            while any(search.running for search in searches):
                self._advance(list(zip(token_prompts, searches, strict=True)))
                progress.update()
        return [
            BeamSearchOutput([self._beam_sequence(prompt, done) for done in search.finished])
            for prompt, search in zip(token_prompts, searches, strict=True)
        ]

    def _advance(self, searches: list[tuple[TokenPrompt, BeamSearch]]) -> None:
        """One more token for all running beams of all prompts, in one batch."""
        requests = [
            self._beam_request(prompt, beam, search.num_candidates)
            for prompt, search in searches
            for beam in search.running
        ]
        choices = self._driver.submit(requests)
        with self._driver.abort_at_end(choices):
            self._driver.run(choices, "", use_tqdm=False)
        continuations = iter([choice.pieces[0].scored[0].logprobs for choice in choices])
        for _, search in searches:
            if search.running:
                search.advance([next(continuations) for _ in search.running])

    def _beam_request(self, prompt: TokenPrompt, beam: Beam, num_candidates: int) -> GenerationRequest:
        return GenerationRequest(
            request_id=RequestId(str(next(self._request_numbers))),
            prompt_token_ids=prompt.token_ids + beam.token_ids,
            sampling=SamplingParams(temperature=0, max_tokens=1, seed=0, logprobs=num_candidates),
        )

    def _beam_sequence(self, prompt: TokenPrompt, done: FinishedBeam) -> BeamSearchSequence:
        return BeamSearchSequence(
            tokens=[*prompt.token_ids, *done.beam.token_ids],
            text=self._codec.decode(done.beam.token_ids),
            cum_logprob=done.beam.logprob,
            score=done.score,
            finish_reason="stop" if done.is_stopped else "length",
        )

    def _check_room(self, prompt: TokenPrompt, max_tokens: int) -> None:
        num_tokens = len(prompt.token_ids) + max_tokens
        if num_tokens > self._limits.max_sequence_tokens:
            raise ContextTooLong(
                f"prompt of {len(prompt.token_ids)} tokens and max_tokens of {max_tokens} make {num_tokens}; "
                f"this model serves up to {self._limits.max_sequence_tokens} in all: shorten the prompt or lower "
                "max_tokens",
                "max_tokens",
            )

    def _pooling_request(self, prompt: TokenPrompt, pooling: Pooling) -> GenerationRequest:
        return GenerationRequest(
            request_id=RequestId(str(next(self._request_numbers))),
            prompt_token_ids=prompt.token_ids,
            sampling=SamplingParams(seed=0, max_tokens=1),
            pooling=pooling,
        )

    def _answer(
        self,
        prompts: list[TokenPrompt],
        sampling_params: SamplingParams | Sequence[SamplingParams] | None,
        priority: Sequence[int] | None,
        *,
        use_tqdm: bool,
    ) -> list[RequestOutput]:
        if sampling_params is None:
            sampling_params = self.get_default_sampling_params()
        params = params_per_prompt(sampling_params, len(prompts))
        priorities = priorities_per_prompt(priority, len(prompts))
        requests = [self._requests(*order) for order in zip(prompts, params, priorities, strict=True)]
        choices = self._driver.submit([request for group in requests for request in group])
        with self._driver.abort_at_end(choices):
            self._driver.run(choices, "Answers", use_tqdm=use_tqdm)
        rest = iter(choices)
        groups = [[next(rest) for _ in group] for group in requests]
        return [request_output(prompt, group) for prompt, group in zip(prompts, groups, strict=True)]

    def _requests(self, prompt: TokenPrompt, params: SamplingParams, priority: int = 0) -> list[GenerationRequest]:
        """The prompt's n streams, with all settled that was left open."""
        room = self._limits.max_sequence_tokens - len(prompt.token_ids)
        if room < 1:
            raise ContextTooLong(
                f"the prompt has {len(prompt.token_ids)} tokens, prompt and answer together may have "
                f"{self._limits.max_sequence_tokens}: shorten it",
                "prompt",
            )
        sampling = replace(
            params,
            seed=params.seed if params.seed is not None else secrets.randbelow(MAX_SEED),
            max_tokens=params.max_tokens if params.max_tokens is not None else room,
            bad_words=(),
            bad_word_token_ids=(*params.bad_word_token_ids, *self._codec.bad_word_token_ids(params.bad_words)),
        )
        number = next(self._request_numbers)
        return [
            GenerationRequest(
                request_id=RequestId(f"{number}/{index}"),
                prompt_token_ids=prompt.token_ids,
                # Once is enough: all choices have the same prompt.
                sampling=sampling if index == 0 else replace(sampling, prompt_logprobs=None),
                choice_index=index,
                priority=priority,
            )
            for index in range(params.n)
        ]


def _normalized(embedding: Sequence[float]) -> list[float]:
    length = math.hypot(*embedding)
    return [value / length for value in embedding] if length > 0 else list(embedding)
