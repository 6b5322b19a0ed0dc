"""Compiles grammars beside the engine's thread: each once, tried in a process of its own first."""

import json
import logging
import subprocess
import sys
import weakref
from collections import OrderedDict
from concurrent.futures import Future, ThreadPoolExecutor
from queue import SimpleQueue
from threading import Lock

from kvasir_protocol.errors import CheckpointError, InvalidRequest, KvasirError, ServiceUnavailable
from kvasir_protocol.structured import StructuredOutput, StructureKind
from kvasir_workers.grammar.compile_line import CompileLine
from kvasir_workers.grammar.state import Grammar
from kvasir_workers.grammar.token_table import LazyTokenTable, TokenSource

_log = logging.getLogger(__name__)

_NUM_TRIALS = 2
"""One hostile grammar must not hold up all others."""

_MAX_IN_LINE_PER_TENANT = 32
_MAX_IN_LINE = 512
"""Grammars in line to be compiled: half a minute of one tenant's worst, if it is alone."""

_MAX_KEPT_BYTES = 256 * 2**20
_MAX_KEPT = 512

_Key = tuple[StructureKind, str]


class TrialProcess:
    """A child process of `trial.py`, started at its first use and again after it was lost."""

    def __init__(self, source: TokenSource) -> None:
        eos = ",".join(map(str, sorted(source.eos_token_ids)))
        self._command = [sys.executable, "-m", "kvasir_workers.grammar.trial", str(source.directory)]
        self._command += [str(source.vocab_size), eos]
        self._process: subprocess.Popen[str] | None = None

    def ask(self, kind: StructureKind, text: str) -> dict[str, object]:
        """{"source", "num_bytes"} or {"refusal"}. Raises CheckpointError or ServiceUnavailable."""
        process = self._process or self._start()
        assert process.stdin is not None and process.stdout is not None, "opened with pipes"
        try:
            process.stdin.write(json.dumps({"kind": kind, "text": text}) + "\n")
            process.stdin.flush()
            answer = process.stdout.readline()
        except OSError:
            answer = ""
        if not answer:
            self.stop()
            raise ServiceUnavailable("the process that tries grammars was lost; send the request again")
        return dict(json.loads(answer))

    def _start(self) -> subprocess.Popen[str]:
        process = subprocess.Popen(self._command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self._process = process
        assert process.stdout is not None, "opened with a pipe"
        hello = process.stdout.readline()
        if "ready" not in hello:
            self.stop()
            if not hello:
                raise ServiceUnavailable("the process that tries grammars did not start; its error is in the log")
            raise CheckpointError(str(json.loads(hello)["broken"]))
        return process

    def stop(self) -> None:
        if self._process is not None:
            process, self._process = self._process, None
            process.kill()
            process.wait()


class GrammarCompiler:
    """Grammars by what was asked for. Thread-safe; costs nothing until the first grammar is wanted."""

    def __init__(self, source: TokenSource) -> None:
        self._table = LazyTokenTable(source)
        self._lock = Lock()
        self._futures: OrderedDict[_Key, Future[Grammar]] = OrderedDict()
        self._line: CompileLine[_Key] = CompileLine(_MAX_IN_LINE_PER_TENANT, _MAX_IN_LINE)
        self._num_bytes: dict[_Key, int] = {}
        self._has_end = bool(source.eos_token_ids)
        self._threads = ThreadPoolExecutor(_NUM_TRIALS, thread_name_prefix="grammars")
        trials = [TrialProcess(source) for _ in range(_NUM_TRIALS)]
        self._idle: SimpleQueue[TrialProcess] = SimpleQueue()
        for trial in trials:
            self._idle.put(trial)
        self._stop = weakref.finalize(self, _stop_all, trials)

    def compile(self, wanted: StructuredOutput) -> Grammar:
        """Wait for it. Raises InvalidRequest if it can't be had, ServiceUnavailable if it can't be had now."""
        return grammar_in(self.submit(wanted), wanted)

    def submit(self, wanted: StructuredOutput, tenant: str = "") -> Future[Grammar]:
        """The grammar when it is compiled; InvalidRequest in it says why there is none. Tenants are served in turn."""
        key = (wanted.kind, wanted.text)
        with self._lock:
            known = self._futures.get(key)
            if known is not None:
                self._futures.move_to_end(key)
                if key not in self._line:
                    return known
            future: Future[Grammar] = known or Future()
            try:
                self._line.add(tenant, key)
            except ServiceUnavailable as error:
                return _failed(error)
            self._futures[key] = future
        try:
            self._threads.submit(self._settle_next)
        except RuntimeError:  # the pool is shut down
            return _failed(ServiceUnavailable("this engine is stopping"))
        return future

    def close(self) -> None:
        """End the processes. Idempotent."""
        self._stop()
        self._threads.shutdown(wait=False, cancel_futures=True)

    def _settle_next(self) -> None:
        """As often as something was put in line: what two tenants wait for is in it twice, and settled once."""
        with self._lock:
            key = self._line.take()
            if key is None:
                return
            future = self._futures[key]
        try:
            grammar = self._compile(key)
        except KvasirError as error:
            if isinstance(error, ServiceUnavailable):
                with self._lock:
                    del self._futures[key]
            future.set_exception(error)
        except Exception:
            _log.exception("a grammar could not be compiled")
            future.set_exception(ServiceUnavailable("the grammar could not be compiled; the replica's log tells why"))
        else:
            future.set_result(grammar)
        self._forget_oldest()

    def _compile(self, key: _Key) -> Grammar:
        if not self._has_end:
            raise InvalidRequest("this model names no end token, so an answer of a given form could not end")
        trial = self._idle.get()
        try:
            answer = trial.ask(*key)
            if "refusal" in answer:
                raise InvalidRequest(str(answer["refusal"]))
            table = self._table.get()
        except CheckpointError as error:
            raise InvalidRequest(f"this model can't answer in a given form: {error}") from error
        finally:
            self._idle.put(trial)
        matcher = table.matcher(str(answer["source"]))
        if matcher.is_error():
            raise InvalidRequest(matcher.get_error())
        with self._lock:
            self._num_bytes[key] = int(str(answer["num_bytes"]))
        return Grammar(matcher, table)

    def _forget_oldest(self) -> None:
        """Those least lately asked for, beyond what may be kept; one that still compiles stays."""
        with self._lock:
            for key in list(self._futures):
                if len(self._futures) <= _MAX_KEPT and sum(self._num_bytes.values()) <= _MAX_KEPT_BYTES:
                    return
                if self._futures[key].done():
                    del self._futures[key]
                    self._num_bytes.pop(key, None)


def grammar_in(future: Future[Grammar], wanted: StructuredOutput) -> Grammar:
    """The future's result. Raises InvalidRequest for the field in which it was asked for, or ServiceUnavailable."""
    # Not result(): each call of it would add its traceback to the one exception that all callers share.
    match error := future.exception():
        case None:
            return future.result()
        case InvalidRequest():
            raise InvalidRequest(f"{wanted.field}: {error}", wanted.field)
        case _:
            raise ServiceUnavailable(str(error))


def _failed(error: ServiceUnavailable) -> Future[Grammar]:
    future: Future[Grammar] = Future()
    future.set_exception(error)
    return future


def _stop_all(trials: list[TrialProcess]) -> None:
    for trial in trials:
        trial.stop()
