"""Compiled once, refused with the reason; whatever is sent costs its sender a refusal and nobody else anything."""

import json
import os
import re
import resource
import time
from collections.abc import Iterator
from pathlib import Path
from threading import Semaphore

import pytest

from kvasir_protocol.errors import InvalidRequest
from kvasir_protocol.structured import StructuredOutput, StructureKind
from kvasir_workers.grammar.compiler import GrammarCompiler
from kvasir_workers.grammar.source import grammar_source
from kvasir_workers.grammar.token_table import TokenSource
from tests.forms import REFUSED_GRAMMARS, REFUSED_SCHEMAS


def form(kind: StructureKind, text: str) -> StructuredOutput:
    return StructuredOutput(kind=kind, text=text)


HARMLESS = form("regex", "[ab]+c")


def chain(length: int, link: str) -> str:
    """Definitions, each of which refers to the next; § in link is the reference."""
    parts = [f'"a{i}":' + link.replace("§", f'{{"$ref":"#/$defs/a{i + 1}"}}') for i in range(length)]
    return f'{{"$ref":"#/$defs/a0","$defs":{{{",".join(parts)},"a{length}":{{"type":"string"}}}}}}'


def rules(length: int, body: str, first: str) -> str:
    """A grammar of rules, each made of the next; § in body is the next one's number."""
    lines = [f"{first}{i}: {body.replace('§', str(i + 1))}" for i in range(length)]
    return "\n".join([f"start: {first}0", *lines, f'{first}{length}: "b"'])


HOSTILE: dict[str, tuple[StructureKind, str]] = {
    "repetition of repetitions": ("regex", "(a{1000}){1000}"),
    "repetition cubed": ("regex", "((a{1,100}){1,100}){1,100}"),
    "huge repetition": ("regex", "a{1,100000000}"),
    "overflowing repetition": ("regex", "a{99999999999999999999}"),
    "deep regex": ("regex", "(" * 20_000 + "a" + ")" * 20_000),
    "deep stars": ("regex", "(" * 500 + "a" + ")*" * 500),
    "many stars": ("regex", ".*" * 5_000),
    "exponential automaton": ("regex", "(a|b)*a(a|b){3000}"),
    "optional before the same": ("regex", "a?" * 3_000 + "a" * 3_000),
    "many alternatives": ("regex", "|".join(f".*{i}.*" for i in range(3_000))),
    "deep schema": ("json_schema", '{"items":' * 3_000 + "{}" + "}" * 3_000),
    "doubling allOf": ("json_schema", chain(40, '{"allOf":[§,§]}')),
    "doubling anyOf": ("json_schema", chain(40, '{"anyOf":[§,§]}')),
    "doubling properties": ("json_schema", chain(300, '{"type":"object","properties":{"x":§,"y":§}}')),
    "cross product": (
        "json_schema",
        json.dumps({"allOf": [{"anyOf": [{"properties": {f"{i}.{j}": {}}} for j in range(8)]} for i in range(20)]}),
    ),
    "chain of references": ("json_schema", chain(1_300, '{"allOf":[§]}')),
    "reference to itself": ("json_schema", '{"anyOf":[{"$ref":"#"},{"$ref":"#"}]}'),
    "circle of references": (
        "json_schema",
        '{"$ref":"#/$defs/a","$defs":{"a":{"$ref":"#/$defs/b"},"b":{"$ref":"#/$defs/a"}}}',
    ),
    "multiple of a large prime": ("json_schema", '{"type":"integer","multipleOf":99999989}'),
    "multiples of primes": ("json_schema", '{"allOf":[{"type":"integer","multipleOf":9973},{"multipleOf":9967}]}'),
    "many optional properties": ("json_schema", json.dumps({"properties": {f"k{i}": {} for i in range(3_000)}})),
    "many patterns": ("json_schema", json.dumps({"patternProperties": {f"^.*{i}.*$": {} for i in range(800)}})),
    "costly pattern": ("json_schema", json.dumps({"type": "string", "pattern": "^(.*a.{25}){3}$", "maxLength": 5_000})),
    "huge enum": ("json_schema", json.dumps({"enum": [f"{i}" for i in range(7_000)]})),
    "deep grammar": ("grammar", "start: " + "(" * 20_000 + '"a"' + ")" * 20_000),
    "doubling terminals": ("grammar", rules(40, "A§ A§", first="A")),
    "repetitions of rules": ("grammar", 'start: a{1000}\na: b{1000}\nb: "x"{1000}'),
    "chain of rules": ("grammar", rules(2_500, 'r§ | r§ "a"', first="r")),
    "many brackets in gbnf": ("grammar", "root ::= " + "(" * 20_000),
    "huge choices": ("choice", json.dumps(["x" * 30_000, "y" * 30_000])),
}  # fmt: skip


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_form_costs_its_sender_a_refusal_and_nobody_else_anything(compiler: GrammarCompiler, name: str) -> None:
    """A few of them are harmless to llguidance: those are taken, at a small price."""
    compiler.compile(HARMLESS)
    cpu_before, peak_before = time.process_time(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    error = compiler.submit(form(*HOSTILE[name])).exception()
    assert error is None or (isinstance(error, InvalidRequest) and len(str(error)) < 600)
    assert time.process_time() - cpu_before < 5
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - peak_before < 300 * 1024
    assert compiler.compile(form("regex", f"after {name}"))


@pytest.mark.parametrize("reason", REFUSED_SCHEMAS)
def test_schema_that_would_not_be_obeyed_is_refused_by_name(compiler: GrammarCompiler, reason: str) -> None:
    with pytest.raises(InvalidRequest, match=re.escape(reason)):
        compiler.compile(form("json_schema", json.dumps(REFUSED_SCHEMAS[reason])))


@pytest.mark.parametrize(("reason", "grammar"), REFUSED_GRAMMARS)
def test_bad_grammar_is_refused(compiler: GrammarCompiler, reason: str, grammar: str) -> None:
    with pytest.raises(InvalidRequest, match=re.escape(reason)):
        compiler.compile(form("grammar", grammar))


def test_same_form_is_compiled_once(compiler: GrammarCompiler) -> None:
    assert compiler.compile(HARMLESS) is compiler.compile(form("regex", "[ab]+c"))


def test_same_refusal_is_told_to_each_under_the_name_that_he_used(compiler: GrammarCompiler) -> None:
    for field in ("response_format", "structured_outputs"):
        with pytest.raises(InvalidRequest, match=f"{field}: ") as caught:
            compiler.compile(StructuredOutput(kind="json_schema", text='{"not":{}}', field=field))
        assert caught.value.field == field


def test_lost_trial_process_is_started_again(token_source: TokenSource) -> None:
    compiler = GrammarCompiler(token_source)
    compiler.compile(HARMLESS)
    for trial in [compiler._idle.get() for _ in range(compiler._idle.qsize())]:
        if trial._process is not None:
            trial.stop()
        compiler._idle.put(trial)
    assert compiler.compile(form("regex", "again"))
    compiler.close()


class GatedTrial:
    """Answers once its gate has been passed by somebody, and remembers what it was asked."""

    def __init__(self, asked: list[str]) -> None:
        self.gate = Semaphore(0)
        self._asked = asked

    def ask(self, kind: StructureKind, text: str) -> dict[str, object]:
        self._asked.append(text)
        assert self.gate.acquire(timeout=60)
        return {"source": grammar_source(kind, text), "num_bytes": 1}

    def stop(self) -> None:
        pass


@pytest.fixture
def gated(token_source: TokenSource) -> Iterator[tuple[GrammarCompiler, GatedTrial, list[str]]]:
    """A compiler with a single trial."""
    asked: list[str] = []
    compiler, trial = GrammarCompiler(token_source), GatedTrial(asked)
    while not compiler._idle.empty():
        compiler._idle.get()
    compiler._idle.put(trial)  # type: ignore[arg-type]
    yield compiler, trial, asked
    trial.gate.release(1000)
    compiler.close()


def test_tenant_that_floods_the_line_does_not_hold_up_another(
    gated: tuple[GrammarCompiler, GatedTrial, list[str]],
) -> None:
    """Two of loud's may be under way when quiet comes, and one more has its turn before quiet's."""
    compiler, trial, asked = gated
    loud = [compiler.submit(form("regex", f"loud{i}"), "loud") for i in range(20)]
    quiet = compiler.submit(form("regex", "quiet"), "quiet")
    trial.gate.release(4)
    assert quiet.result(timeout=60)
    assert "quiet" in asked[:4]
    trial.gate.release(17)
    assert all(future.result(timeout=60) for future in loud)


def test_tenant_whose_line_is_full_is_told_to_come_again_and_others_are_taken(
    gated: tuple[GrammarCompiler, GatedTrial, list[str]],
) -> None:
    compiler, trial, _ = gated
    loud = [compiler.submit(form("regex", f"loud{i}"), "loud") for i in range(40)]
    refused = [future for future in loud if future.done()]
    assert 0 < len(refused) <= 8
    assert all("grammars of yours are in line" in str(future.exception()) for future in refused)
    quiet = compiler.submit(form("regex", "quiet"), "quiet")
    assert not quiet.done()
    trial.gate.release(41)
    assert quiet.result(timeout=60)
    assert compiler.submit(form("regex", "loud39"), "loud").result(timeout=60)


def test_form_that_another_waits_for_comes_at_the_turn_of_whoever_is_first_and_is_compiled_once(
    gated: tuple[GrammarCompiler, GatedTrial, list[str]],
) -> None:
    compiler, trial, asked = gated
    loud = [compiler.submit(form("regex", f"loud{i}"), "loud") for i in range(20)]
    same = compiler.submit(form("regex", "loud15"), "quiet")
    assert same is loud[15]
    trial.gate.release(4)
    assert same.result(timeout=60)
    trial.gate.release(16)
    assert all(future.result(timeout=60) for future in loud)
    assert sorted(asked) == sorted(f"loud{i}" for i in range(20))


def test_nothing_is_left_after_close(token_source: TokenSource) -> None:
    compiler = GrammarCompiler(token_source)
    compiler.compile(HARMLESS)
    processes = [trial._process for trial in [compiler._idle.get() for _ in range(2)] if trial._process is not None]
    assert processes
    compiler.close()
    for process in processes:
        with pytest.raises(ProcessLookupError):
            os.kill(process.pid, 0)


@pytest.mark.parametrize(
    ("files", "reason"),
    [({}, "tokenizer.json"), ({"tokenizer.json": "{}"}, "tokenizer"), ({"tokenizer.json": "?"}, "")],
)
def test_model_without_a_usable_tokenizer_refuses_forms(tmp_path: Path, files: dict[str, str], reason: str) -> None:
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    compiler = GrammarCompiler(TokenSource(directory=tmp_path, vocab_size=100, eos_token_ids=frozenset({0})))
    with pytest.raises(InvalidRequest, match=f"this model can't answer in a given form.*{reason}"):
        compiler.compile(HARMLESS)
    compiler.close()


def test_model_without_an_end_token_refuses_forms(token_source: TokenSource) -> None:
    compiler = GrammarCompiler(
        TokenSource(directory=token_source.directory, vocab_size=2048, eos_token_ids=frozenset())
    )
    with pytest.raises(InvalidRequest, match="no end token"):
        compiler.compile(HARMLESS)
    compiler.close()
