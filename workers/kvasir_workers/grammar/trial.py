"""The process that tries a grammar before an engine's process touches it.

    compiler --- {"kind", "text"} ---> trial --- fork ---> child: parse, compile, walk
             <-- {"source"} or {"refusal"} --            (its CPU time and memory are limited)

A hostile grammar may take seconds, gigabytes or the whole process: here that costs nobody else anything. What comes
through is compiled again in the engine's process, in the same time and space as it took here.
"""

import ctypes
import json
import os
import resource
import select
import signal
import sys
import time
from pathlib import Path

import numpy as np

from kvasir_protocol.errors import CheckpointError
from kvasir_workers.grammar.refusal import Refusal
from kvasir_workers.grammar.source import grammar_source
from kvasir_workers.grammar.state import Grammar
from kvasir_workers.grammar.token_table import TokenSource, TokenTable

CPU_LIMIT_S = 2
"""Honest grammars take milliseconds."""

WALL_LIMIT_S = 20.0
"""For a host so busy that CPU time hardly passes."""

MEMORY_LIMIT_BYTES = 256 * 2**20
"""On top of what the process has: honest grammars take a few MiB."""

_STEP_LIMIT_S = 0.25
"""One mask stops the whole batch for so long."""

_PR_SET_PDEATHSIG = 1
"""From linux/prctl.h: the child does not outlive its parent."""

_NUM_WALKS = 2
_WALK_TOKENS = 40


def main() -> None:
    """Answer grammars on standard input, a line of JSON each, until it closes."""
    source = TokenSource(
        directory=Path(sys.argv[1]),
        vocab_size=int(sys.argv[2]),
        eos_token_ids=frozenset(map(int, sys.argv[3].split(","))),
    )
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        table = TokenTable(source)
    except CheckpointError as error:
        print(json.dumps({"broken": str(error)}), flush=True)
        return
    print(json.dumps({"ready": True}), flush=True)
    for line in sys.stdin:
        print(_try_in_child(line, table), flush=True)


def _try_in_child(line: str, table: TokenTable) -> str:
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        # Whatever happens in the child, it must not go on with the loop of its parent.
        try:
            os.close(reader)
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stderr.fileno())  # a crash would fill the log
            ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
            _limit_resources()
            _write(writer, json.dumps(_try(json.loads(line), table)).encode())
        except (MemoryError, RecursionError):
            _write(writer, json.dumps({"refusal": "the grammar takes too much memory"}).encode())
        finally:
            os._exit(0)
    os.close(writer)
    answer = _read_all(reader, child)
    _, status = os.waitpid(child, 0)
    return answer.decode() if answer else json.dumps({"refusal": _cause_of_death(status)})


def _write(writer: int, content: bytes) -> None:
    while content:
        content = content[os.write(writer, content) :]


def _read_all(reader: int, child: int) -> bytes:
    """What the child says until it ends; it is killed when it takes too long."""
    deadline = time.monotonic() + WALL_LIMIT_S
    parts: list[bytes] = []
    with os.fdopen(reader, "rb", buffering=0) as stream:
        while True:
            ready, _, _ = select.select([stream], [], [], max(0.0, deadline - time.monotonic()))
            if not ready:
                os.kill(child, signal.SIGKILL)
                return b""
            part = stream.read(2**16)
            if not part:
                return b"".join(parts)
            parts.append(part)


def _cause_of_death(status: int) -> str:
    if os.WIFSIGNALED(status) and os.WTERMSIG(status) in (signal.SIGXCPU, signal.SIGKILL):
        return f"the grammar takes more than {CPU_LIMIT_S} s to compile; make it simpler"
    return f"the grammar takes more than {MEMORY_LIMIT_BYTES >> 20} MiB or crashes the compiler; make it simpler"


def _limit_resources() -> None:
    virtual_bytes = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (virtual_bytes + MEMORY_LIMIT_BYTES,) * 2)
    used_s = int(time.process_time())
    resource.setrlimit(resource.RLIMIT_CPU, (used_s + CPU_LIMIT_S, used_s + CPU_LIMIT_S + 1))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def _try(wanted: dict[str, str], table: TokenTable) -> dict[str, object]:
    before = _peak_bytes()
    try:
        source = grammar_source(wanted["kind"], wanted["text"])  # type: ignore[arg-type]  # the protocol checked it
        matcher = table.matcher(source)
        if matcher.is_error():
            raise Refusal(_in_one_line(matcher.get_error()))
        _walk_all(Grammar(matcher, table))
    except Refusal as refusal:
        return {"refusal": str(refusal)}
    return {"source": source, "num_bytes": max(0, _peak_bytes() - before) + len(source)}


def _in_one_line(error: str) -> str:
    """Without the picture of the place; parsers of regexes say last what is wrong."""
    _, _, cause = error.rpartition("\nerror: ")
    return cause.strip().splitlines()[0]


def _peak_bytes() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _walk_all(grammar: Grammar) -> None:
    """Follow a few random answers for a while: dead ends and costly masks show themselves."""
    for seed in range(_NUM_WALKS):
        dice = np.random.default_rng(seed)
        state = grammar.start()
        for _ in range(_WALK_TOKENS):
            started = time.process_time()
            allowed = state.allowed()
            token_id = int(dice.choice(np.flatnonzero(allowed)))
            if not state.accept([token_id]):
                raise Refusal(f"the grammar has dead ends or is too complex: {state.failure}")
            if time.process_time() - started > _STEP_LIMIT_S:
                raise Refusal("the grammar is too complex: a single token takes too long")
            if state.has_ended:
                break


if __name__ == "__main__":
    main()
