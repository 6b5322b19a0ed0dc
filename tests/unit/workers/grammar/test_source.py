"""Whatever text comes out, it has the form that was asked for; what can't be promised is refused by name."""

import json
import re

import jsonschema
import pytest

from kvasir_workers.grammar.refusal import Refusal
from kvasir_workers.grammar.source import grammar_source
from kvasir_workers.grammar.token_table import TokenTable
from tests.forms import CHOICES, GRAMMARS, REFUSED_GRAMMARS, REFUSED_REGEXES, REGEXES, SCHEMAS
from tests.unit.workers.grammar.walks import compile_here, random_texts

NUM_WALKS = 25


@pytest.mark.parametrize("name", SCHEMAS)
def test_random_answers_satisfy_their_schema(table: TokenTable, name: str) -> None:
    validator = jsonschema.Draft202012Validator(SCHEMAS[name])
    texts = list(random_texts(table, compile_here(table, "json_schema", json.dumps(SCHEMAS[name])), NUM_WALKS))
    assert texts
    assert [text for text in texts if not validator.is_valid(json.loads(text))] == []


def test_every_keyword_that_is_claimed_is_in_the_table() -> None:
    from kvasir_workers.grammar.schema import FORMATS, KEYWORDS

    written = json.dumps(SCHEMAS)
    assert [word for word in KEYWORDS | (FORMATS - {"uri"}) if f'"{word}"' not in written] == []


@pytest.mark.parametrize("pattern", REGEXES)
def test_random_answers_match_their_regex(table: TokenTable, pattern: str) -> None:
    texts = [text.decode() for text in random_texts(table, compile_here(table, "regex", pattern), NUM_WALKS)]
    assert texts
    assert [text for text in texts if not re.fullmatch(pattern, text)] == []


@pytest.mark.parametrize("choices", CHOICES)
def test_every_choice_is_said_and_nothing_else(table: TokenTable, choices: tuple[str, ...]) -> None:
    grammar = compile_here(table, "choice", json.dumps(choices))
    assert {text.decode() for text in random_texts(table, grammar, 200)} == set(choices)


@pytest.mark.parametrize("name", GRAMMARS)
def test_random_answers_follow_their_grammar(table: TokenTable, name: str) -> None:
    grammar, pattern = GRAMMARS[name]
    texts = [text.decode() for text in random_texts(table, compile_here(table, "grammar", grammar), NUM_WALKS)]
    assert texts
    assert [text for text in texts if not re.fullmatch(pattern, text)] == []


@pytest.mark.parametrize(("reason", "pattern"), REFUSED_REGEXES)
def test_regex_that_is_not_plainly_regular_is_refused_by_name(reason: str, pattern: str) -> None:
    with pytest.raises(Refusal, match=re.escape(reason)):
        grammar_source("regex", pattern)


@pytest.mark.parametrize(("reason", "grammar"), REFUSED_GRAMMARS[:6])
def test_grammar_that_reaches_beyond_text_is_refused(reason: str, grammar: str) -> None:
    with pytest.raises(Refusal, match=re.escape(reason)):
        grammar_source("grammar", grammar)


@pytest.mark.parametrize("text", ["", "{", "[1]", "3", '{"minimum": NaN}', "[" * 100_000])
def test_schema_that_is_no_object_of_json_is_refused(text: str) -> None:
    with pytest.raises(Refusal):
        grammar_source("json_schema", text)


def test_marks_of_other_languages_may_stand_in_quotes() -> None:
    assert grammar_source("grammar", 'start: "<a>" "%json" /[@<]/ // <b> @c %d')
