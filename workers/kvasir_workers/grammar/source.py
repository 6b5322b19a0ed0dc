"""From what a caller asks for to a grammar that llguidance compiles."""

import json
from typing import assert_never

from llguidance import LLMatcher

from kvasir_protocol.structured import MAX_NESTING, StructureKind
from kvasir_workers.grammar.lark import check_grammar
from kvasir_workers.grammar.patterns import literal, rewrite
from kvasir_workers.grammar.refusal import Refusal
from kvasir_workers.grammar.schema import check_schema

_JSON_OPTIONS = {
    "lenient": False,
    "coerce_one_of": False,
    "whitespace_flexible": True,
    # One blank, or a new line and its indentation: what people write, and no way to fill an answer with blanks.
    "whitespace_pattern": r"\x20|\n[\x20\x09]{0,40}",
}


def grammar_source(kind: StructureKind, text: str) -> str:
    """llguidance's own form of it. Raises Refusal."""
    match kind:
        case "json_object":
            return _json_grammar({"type": "object"})
        case "json_schema":
            return _json_grammar(_read_schema(text))
        case "regex":
            return _regex_grammar(rewrite(text))
        case "choice":
            choices = sorted(set(json.loads(text)))
            return _regex_grammar("|".join(f"(?:{literal(choice)})" for choice in choices))
        case "grammar":
            return LLMatcher.grammar_from_lark(check_grammar(text))
        case _:
            assert_never(kind)


def _read_schema(text: str) -> object:
    try:
        schema = json.loads(text, parse_constant=_refuse_constant)
    except RecursionError as error:
        raise Refusal(f"the schema is nested deeper than {MAX_NESTING} levels") from error
    except ValueError as error:
        raise Refusal(f"the schema is not JSON: {error}") from error
    check_schema(schema)
    return schema


def _refuse_constant(name: str) -> object:
    raise Refusal(f"{name} is no JSON")


def _json_grammar(schema: object) -> str:
    try:
        return LLMatcher.grammar_from_json_schema(json.dumps(schema), overrides=_JSON_OPTIONS)  # type: ignore[arg-type]
    except ValueError as error:
        raise Refusal(f"not a JSON schema: {error}") from error


def _regex_grammar(pattern: str) -> str:
    return LLMatcher.grammar_from_regex(pattern)
