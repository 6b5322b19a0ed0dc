"""Runs the engine of this process for the calls that are open."""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager

from tqdm import tqdm

from kvasir.choice import Choice
from kvasir.interrupts import interrupt_at_end
from kvasir_protocol.events import TokenOutput
from kvasir_protocol.ids import RequestId
from kvasir_protocol.request import GenerationRequest, SamplingParams
from kvasir_protocol.structured import StructuredOutput
from kvasir_router.tokenise import TextCodec
from kvasir_workers.engine import Engine
from kvasir_workers.grammar.compiler import GrammarCompiler
from kvasir_workers.grammar.state import Grammar


class Driver:
    """The engine, and the choices that somebody waits for. Every step serves all of them."""

    def __init__(self, engine: Engine, grammars: GrammarCompiler, codec: TextCodec) -> None:
        self._open_engine: Engine | None = engine
        self._grammars = grammars
        self._codec = codec
        self._choices: dict[RequestId, Choice] = {}
        self._left: list[Choice] = []
        self._is_busy = False
        self._has_failed = False

    @property
    def engine(self) -> Engine:
        if self._open_engine is None:
            raise RuntimeError("this LLM is closed; make a new one")
        return self._open_engine

    def close(self) -> None:
        """Let go of the engine, even if somebody still holds a stream of it, and of all that compiles grammars."""
        self._open_engine = None
        self._choices.clear()
        self._grammars.close()

    def submit(self, requests: Sequence[GenerationRequest]) -> list[Choice]:
        """Give all to the engine, or none. Raises InvalidRequest for the first that can't be served."""
        if self._has_failed:
            raise RuntimeError("the engine failed in an earlier call; make a new LLM")
        engine = self.engine
        grammars = self._compile_all(request.sampling for request in requests)
        choices: list[Choice] = []
        try:
            with self._undisturbed():
                for request in requests:
                    wanted = request.sampling.structured_outputs
                    engine.add(request, grammar=grammars[wanted] if wanted is not None else None)
                    choices.append(Choice(request, self._codec))
                    self._choices[request.request_id] = choices[-1]
        except BaseException:
            self.forget(choices)
            raise
        return choices

    def _compile_all(self, params: Iterable[SamplingParams]) -> dict[StructuredOutput, Grammar]:
        """Every form that is asked for, compiled. Raises InvalidRequest or ServiceUnavailable."""
        wanted = {param.structured_outputs for param in params if param.structured_outputs is not None}
        return {form: self._grammars.compile(form) for form in wanted}

    @contextmanager
    def abort_at_end(self, choices: Sequence[Choice]) -> Iterator[None]:
        """However it ends (also with Ctrl-C), nothing of it stays in the engine."""
        try:
            yield
        finally:
            self.forget(choices)

    def forget(self, choices: Sequence[Choice]) -> None:
        """Nobody waits for these any more. In the middle of a step, they are forgotten when it is over."""
        if self._is_busy:
            self._left += choices
            return
        with self._undisturbed():
            for choice in choices:
                request_id = choice.request.request_id
                if self._choices.pop(request_id, None) is not None and not choice.is_done:
                    self.engine.abort(request_id)
            engine = self._open_engine
            while engine is not None and not self._choices and engine.has_work and not self._has_failed:
                engine.step()  # lands the step that is on its way

    @contextmanager
    def _undisturbed(self) -> Iterator[None]:
        """Neither Ctrl-C nor a stream that somebody drops comes in between: both wait for the end of the block."""
        self._is_busy = True
        try:
            with interrupt_at_end():
                yield
        finally:
            self._is_busy = False
            left, self._left = self._left, []
            if left:
                self.forget(left)

    def run(self, choices: Sequence[Choice], title: str, *, use_tqdm: bool) -> None:
        """Step until all of these are done."""
        with tqdm(total=len(choices), desc=title, disable=not use_tqdm) as progress:
            left = {choice.request.request_id for choice in choices}
            while left:
                for request_id in left.intersection(self.step()):
                    left.remove(request_id)
                    progress.update()

    def step(self) -> list[RequestId]:
        """One step of the engine; its outputs go to the choices of all calls that are open. Returns who is done."""
        done: list[RequestId] = []
        with self._undisturbed():
            for output in self._outputs():
                choice = self._choices[output.request_id]
                choice.read(output)
                if choice.is_done:
                    done.append(output.request_id)
                    if output.finish_reason is None:
                        self.engine.abort(output.request_id)
        return done

    def _outputs(self) -> list[TokenOutput]:
        try:
            return self.engine.step()
        except BaseException:
            self._has_failed = True
            raise
