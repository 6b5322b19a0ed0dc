"""Grammars: Lark as llguidance reads it, or GBNF, which is translated."""

import re

from llguidance.gbnf_to_lark import any_to_lark

from kvasir_workers.grammar.refusal import Refusal

_QUOTED = re.compile(r'"(?:\\.|[^"\\\n])*"|/(?![/*])(?:\\.|[^/\\\n])+/|//[^\n]*|#[^\n]*')
_DIRECTIVES = frozenset({"import", "ignore"})
_ATTRIBUTES = re.compile(r"^\s*[?!]?\w+\s*\[[^\]]*\]\s*:(?!:)", re.MULTILINE)


def check_grammar(text: str) -> str:
    """The grammar in Lark. Raises Refusal for what reaches beyond the answer's text, such as special tokens."""
    if _ATTRIBUTES.search(_QUOTED.sub('""', text)):
        raise Refusal("attributes of rules, such as name[max_tokens=5], are not supported")
    try:
        lark: str = any_to_lark(text)
    except RecursionError as error:
        raise Refusal("the grammar is nested too deeply") from error
    except Exception as error:  # the translator raises bare Exceptions of its own
        raise Refusal(f"not a grammar: {error}") from error
    # What the translator puts in front of its Lark.
    lark = lark.removeprefix("%llguidance {}") if lark != text else lark
    bare = _QUOTED.sub('""', lark)
    for directive in re.findall(r"%(\w*)", bare):
        if directive not in _DIRECTIVES:
            raise Refusal(f"%{directive} in a grammar is not supported")
    if "<" in bare:
        raise Refusal("tokens by name or number (<…>) in a grammar are not supported; write text")
    if "@" in bare:
        raise Refusal("references to other grammars (@…) are not supported")
    return lark
