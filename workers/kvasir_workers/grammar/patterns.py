r"""Regular expressions in Python's syntax, rewritten for llguidance, whose answers then satisfy re.fullmatch.

The two dialects differ in what they take (look-around, flags, set operations) and in what \d, \w and \s mean. So a
pattern is parsed by Python's own parser, and what is not plainly regular is refused by name.
"""

import re
import warnings
from re import _constants as op  # type: ignore[attr-defined]  # the parser is private, but as old as the module
from re import _parser  # type: ignore[attr-defined]
from typing import Any

from kvasir_workers.grammar.refusal import Refusal

MAX_PATTERN_SIZE = 20_000
"""Characters after every repetition is written out: the automaton is built from no less."""

_NARROW = {"DIGIT": "0-9", "WORD": "A-Za-z0-9_", "SPACE": r" \t\n\r\x0b\x0c"}
_WIDE = {"DIGIT": r"\p{Nd}", "WORD": r"\p{L}\p{N}_", "SPACE": r"\s\x1c-\x1f"}
"""No more, and no less, than Python's \\d, \\w and \\s: complements are built from the wide ones."""

_NAMES = {
    "ASSERT": "look-around",
    "ASSERT_NOT": "look-around",
    "GROUPREF": "a back-reference",
    "GROUPREF_EXISTS": "a conditional group",
    "ATOMIC_GROUP": "an atomic group",
    "POSSESSIVE_REPEAT": "a possessive repetition",
}


def rewrite(pattern: str) -> str:
    """The same pattern for llguidance. Raises Refusal that names what is not supported, or what is wrong."""
    try:
        with warnings.catch_warnings(action="error"):
            tree = _parser.parse(pattern)
        if tree.state.flags != re.UNICODE:
            raise Refusal("flags such as (?i) in a regex are not supported; write out what they mean")
        size = _size(tree)
        if size > MAX_PATTERN_SIZE:
            raise Refusal(f"the regex is {size} characters long with its repetitions; the most is {MAX_PATTERN_SIZE}")
        items = list(tree)
        if items and items[0] in ((op.AT, op.AT_BEGINNING), (op.AT, op.AT_BEGINNING_STRING)):
            items = items[1:]
        if items and items[-1] in ((op.AT, op.AT_END), (op.AT, op.AT_END_STRING)):
            items = items[:-1]
        return "".join(map(_item, items))
    except (re.error, OverflowError, Warning) as error:
        raise Refusal(f"not a regular expression: {error}") from error
    except RecursionError as error:
        raise Refusal("the regex is nested too deeply") from error


def literal(text: str) -> str:
    """A pattern that matches exactly this text."""
    return "".join(map(_character, text))


def _character(character: str) -> str:
    is_plain = character.isascii() and (character.isalnum() or character in " _")
    return character if is_plain else f"\\x{{{ord(character):X}}}"


def _code(code: int) -> str:
    if 0xD800 <= code <= 0xDFFF:
        raise Refusal("the regex names half of a surrogate pair, which is no character")
    return _character(chr(code))


def _size(tree: Any) -> int:
    total = 0
    for kind, value in tree:
        if kind in (op.MAX_REPEAT, op.MIN_REPEAT):
            low, high, inner = value
            total += _size(inner) * max(1, low if high is op.MAXREPEAT else high)
        elif kind is op.SUBPATTERN:
            total += _size(value[3])
        elif kind is op.BRANCH:
            total += sum(map(_size, value[1]))
        else:
            total += 1
    return total


def _item(item: tuple[Any, Any]) -> str:
    kind, value = item
    if kind is op.LITERAL:
        return _code(value)
    if kind is op.NOT_LITERAL:
        return f"[^{_code(value)}]"
    if kind is op.ANY:
        return r"[^\n]"
    if kind is op.IN:
        return _character_set(value)
    if kind is op.BRANCH:
        return f"(?:{'|'.join(_sequence(branch) for branch in value[1])})"
    if kind is op.SUBPATTERN:
        if value[1] or value[2]:
            raise Refusal("flags such as (?i:…) in a regex are not supported; write out what they mean")
        return f"(?:{_sequence(value[3])})"
    if kind in (op.MAX_REPEAT, op.MIN_REPEAT):
        low, high, inner = value
        return f"(?:{_sequence(inner)}){{{low},{'' if high is op.MAXREPEAT else high}}}"
    if kind is op.AT:
        raise Refusal("in a regex ^ and $ are supported at its two ends only, and word boundaries nowhere")
    raise Refusal(f"{_NAMES.get(str(kind), str(kind))} in a regex is not supported")


def _sequence(tree: Any) -> str:
    return "".join(map(_item, tree))


def _character_set(members: list[tuple[Any, Any]]) -> str:
    is_negated = members[0][0] is op.NEGATE
    parts = []
    for kind, value in members[is_negated:]:
        if kind is op.LITERAL:
            parts.append(_code(value))
        elif kind is op.RANGE:
            parts.append(_range(*value))
        else:
            parts.append(_category(str(value), is_in_negated_set=is_negated))
    return f"[{'^' if is_negated else ''}{''.join(parts)}]"


def _range(low: int, high: int) -> str:
    """Without the surrogates, which a range such as \\x00-\\uffff takes in."""
    if low <= 0xDFFF and high >= 0xD800:
        below = _range(low, 0xD7FF) if low < 0xD800 else ""
        above = _range(0xE000, high) if high > 0xDFFF else ""
        if not below + above:
            raise Refusal("the regex names half of a surrogate pair, which is no character")
        return below + above
    return f"{_code(low)}-{_code(high)}"


def _category(name: str, *, is_in_negated_set: bool) -> str:
    kind = name.removeprefix("CATEGORY_")
    is_complement = kind.startswith("NOT_")
    members = (_WIDE if is_complement != is_in_negated_set else _NARROW)[kind.removeprefix("NOT_")]
    return f"[^{members}]" if is_complement else members
