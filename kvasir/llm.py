"""The engine without a server: a model in this process, prompts in, answers out."""

import secrets
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from itertools import count
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from kvasir.demo import DEMO_MODEL_NAME, demo_model_path
from kvasir.outputs import CompletionOutput, Logprob, RequestOutput
from kvasir.prompts import Prompt, TokenPrompt, read_prompts
from kvasir_protocol.config import Device, DType, EngineConfig, ModelConfig, SchedulingPolicyName
from kvasir_protocol.errors import ContextTooLong, InvalidRequest
from kvasir_protocol.ids import RequestId
from kvasir_protocol.request import MAX_SEED, GenerationRequest, SamplingParams
from kvasir_protocol.structured import StructuredOutput
from kvasir_router.pieces import Piece, PieceReader, ScoredToken
from kvasir_router.tokenise import TextCodec
from kvasir_workers.grammar.state import Grammar
from kvasir_workers.load import build_engine, grammar_compiler, load_model

Message = Mapping[str, Any]
"""One chat message, such as {"role": "user", "content": "Hello"}."""


@dataclass(slots=True)
class _Choice:
    """One stream on its way to a CompletionOutput."""

    reader: PieceReader
    request: GenerationRequest
    texts: list[str] = field(default_factory=list)
    token_ids: list[int] = field(default_factory=list)
    scored: list[ScoredToken] = field(default_factory=list)
    last: Piece | None = None

    def add(self, piece: Piece) -> None:
        self.texts.append(piece.text)
        self.token_ids += piece.token_ids
        self.scored += piece.scored
        self.last = piece


class LLM:
    """A model in this process; vLLM's shape. model None is the embedded demo model.

    Not thread-safe. Raises CheckpointError, ConfigError or OutOfMemory if the model can't be had.
    """

    def __init__(
        self,
        model: str | Path | None = None,
        *,
        dtype: DType = "auto",
        device: Device = "auto",
        max_model_len: int | None = None,
        max_num_seqs: int = 256,
        max_num_batched_tokens: int = 2048,
        block_size: int = 16,
        kv_cache_memory_bytes: int | None = None,
        enable_prefix_caching: bool = True,
        scheduling_policy: SchedulingPolicyName = "fcfs",
        num_threads: int | None = None,
    ) -> None:
        directory = Path(model) if model is not None else demo_model_path()
        name = directory.name if model is not None else DEMO_MODEL_NAME
        config = EngineConfig(
            device=device,
            page_size=block_size,
            kv_cache_bytes=kv_cache_memory_bytes,
            max_num_seqs=max_num_seqs,
            max_num_batched_tokens=max_num_batched_tokens,
            enable_prefix_caching=enable_prefix_caching,
            scheduling_policy=scheduling_policy,
            max_waiting_requests=None,  # the caller, who is here, may hand over as many prompts as it likes
            num_threads=num_threads,
        )
        if num_threads is not None:
            torch.set_num_threads(num_threads)
        loaded = load_model(
            ModelConfig(path=str(directory), served_name=name, dtype=dtype, max_model_len=max_model_len), config
        )
        self._codec = TextCodec.from_directory(directory)
        self._max_sequence_tokens = loaded.limits.max_sequence_tokens
        self._engine = build_engine(loaded, config)
        self._grammars = grammar_compiler(directory, loaded.limits)
        self._request_numbers = count()

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

    def _answer(
        self,
        prompts: list[TokenPrompt],
        sampling_params: SamplingParams | Sequence[SamplingParams] | None,
        priority: Sequence[int] | None,
        *,
        use_tqdm: bool,
    ) -> list[RequestOutput]:
        params = self._params_per_prompt(sampling_params, len(prompts))
        priorities = [0] * len(prompts) if priority is None else priority
        if len(priorities) != len(prompts):
            raise InvalidRequest(f"{len(priorities)} priorities for {len(prompts)} prompts; give one each", "priority")
        choices: dict[RequestId, _Choice] = {}
        groups = [self._choices(*order) for order in zip(prompts, params, priorities, strict=True)]
        grammars = self._compile_all(params)
        with self._abort_on_error(choices):
            for group in groups:
                for choice in group:
                    wanted = choice.request.sampling.structured_outputs
                    self._engine.add(choice.request, grammar=grammars[wanted] if wanted is not None else None)
                    choices[choice.request.request_id] = choice
            self._run(choices, use_tqdm=use_tqdm)
        return [self._request_output(prompt, group) for prompt, group in zip(prompts, groups, strict=True)]

    def _params_per_prompt(
        self, sampling_params: SamplingParams | Sequence[SamplingParams] | None, num_prompts: int
    ) -> list[SamplingParams]:
        if sampling_params is None:
            sampling_params = self.get_default_sampling_params()
        if isinstance(sampling_params, SamplingParams):
            return [sampling_params] * num_prompts
        if len(sampling_params) != num_prompts:
            raise InvalidRequest(
                f"{len(sampling_params)} sampling_params for {num_prompts} prompts; give one, or one for each",
                "sampling_params",
            )
        return list(sampling_params)

    def _compile_all(self, params: Sequence[SamplingParams]) -> dict[StructuredOutput, Grammar]:
        """Every form that is asked for, compiled. Raises InvalidRequest or ServiceUnavailable."""
        wanted = {param.structured_outputs for param in params if param.structured_outputs is not None}
        return {form: self._grammars.compile(form) for form in wanted}

    def _choices(self, prompt: TokenPrompt, params: SamplingParams, priority: int) -> list[_Choice]:
        """The request's n streams, with seed and max_tokens settled."""
        room = self._max_sequence_tokens - len(prompt.token_ids)
        if room < 1:
            raise ContextTooLong(
                f"the prompt has {len(prompt.token_ids)} tokens, prompt and answer together may have "
                f"{self._max_sequence_tokens}: shorten it",
                "prompt",
            )
        seed = params.seed if params.seed is not None else secrets.randbelow(MAX_SEED)
        sampling = replace(params, seed=seed, max_tokens=params.max_tokens if params.max_tokens is not None else room)
        number = next(self._request_numbers)
        requests = [
            GenerationRequest(
                request_id=RequestId(f"{number}/{index}"),
                prompt_token_ids=prompt.token_ids,
                sampling=sampling,
                choice_index=index,
                priority=priority,
            )
            for index in range(params.n)
        ]
        return [_Choice(PieceReader(request, request.choice_index, self._codec), request) for request in requests]

    @contextmanager
    def _abort_on_error(self, choices: Mapping[RequestId, _Choice]) -> Iterator[None]:
        """An exception (also Ctrl-C) leaves no sequence in the engine."""
        try:
            yield
        except BaseException:
            for request_id in choices:
                self._engine.abort(request_id)
            raise

    def _run(self, choices: dict[RequestId, _Choice], *, use_tqdm: bool) -> None:
        with tqdm(total=len(choices), desc="Answers", disable=not use_tqdm) as progress:
            while self._engine.has_work:
                for output in self._engine.step():
                    choice = choices[output.request_id]
                    choice.add(choice.reader.read(output))
                    assert choice.last is not None, "a piece was just added"
                    if choice.last.finish_reason is None:
                        continue
                    if output.finish_reason is None:
                        self._engine.abort(output.request_id)
                    progress.update()

    def _request_output(self, prompt: TokenPrompt, group: list[_Choice]) -> RequestOutput:
        return RequestOutput(
            request_id=group[0].request.request_id.split("/")[0],
            prompt=prompt.text,
            prompt_token_ids=list(prompt.token_ids),
            outputs=[self._completion(choice) for choice in group],
            num_cached_tokens=max(choice.last.num_cached_tokens for choice in group if choice.last is not None),
        )

    def _completion(self, choice: _Choice) -> CompletionOutput:
        last = choice.last
        assert last is not None, f"{choice.request.request_id} ended without an output"
        assert last.finish_reason is not None, f"{choice.request.request_id} did not end"
        wants_logprobs = choice.request.sampling.logprobs is not None
        return CompletionOutput(
            index=choice.request.choice_index,
            text="".join(choice.texts),
            token_ids=choice.token_ids,
            cumulative_logprob=sum(scored.logprobs.logprob for scored in choice.scored) if wants_logprobs else None,
            logprobs=[self._alternatives(scored) for scored in choice.scored] if wants_logprobs else None,
            finish_reason=last.finish_reason,
            stop_reason=last.stop_reason,
        )

    def _alternatives(self, scored: ScoredToken) -> dict[int, Logprob]:
        top = zip(scored.logprobs.top_token_ids, scored.logprobs.top_logprobs, strict=True)
        found = {
            token_id: Logprob(logprob, rank, self._codec.token_text(token_id))
            for rank, (token_id, logprob) in enumerate(top, start=1)
        }
        chosen = Logprob(scored.logprobs.logprob, None, self._codec.token_text(scored.token_id))
        return found if scored.token_id in found else {scored.token_id: chosen, **found}
