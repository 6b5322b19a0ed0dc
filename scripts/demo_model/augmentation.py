"""Variations of a question: other words, politeness, small mistakes, case and punctuation."""

import re
from random import Random

from scripts.demo_model.questions import OffTopic, Phrasing, Topic, normalise

_SMALL_WORDS = re.compile(
    "(?i)(a|an|the|is|are|be|do|does|did|can|could|of|in|on|to|for|with|at|by|and|so|my|your|me|i|you|it|that|this|please)"
)
_QUESTION_WORDS = ("what", "how", "why", "which", "who", "where", "when")
_LETTERS = "abcdefghijklmnopqrstuvwxyz"
_SHORTEST_MISTYPED_WORD = 5  # mistakes in shorter words too often make another word


class Phraser:
    """Draws training phrasings. Never returns one that is held out."""

    def __init__(self, phrasing: Phrasing, held_out: frozenset[str], dice: Random) -> None:
        self._phrasing = phrasing
        self._held_out = held_out
        self._dice = dice

    def ask(self, topic: Topic) -> str:
        """One way to ask for the topic."""
        while True:
            if topic.terms and self._dice.random() < 0.4:
                template = self._dice.choice(self._phrasing.definition_templates)
                question = template.replace("{x}", self._dice.choice(topic.terms))
            else:
                question = self._dice.choice(topic.questions)
            if self._may_show(question):
                return self.vary(question)

    def ask_off_topic(self, off_topic: OffTopic) -> str:
        """One question that lies outside of what is taught."""
        while True:
            if self._dice.random() < 0.5:
                question = self._dice.choice(off_topic.questions)
            else:
                template = self._dice.choice(off_topic.templates)
                question = re.sub(r"{(\w+)}", lambda hit: self._dice.choice(off_topic.fillers[hit[1]]), template)
            if self._may_show(question):
                return self.vary(question)

    def vary(self, question: str) -> str:
        """The question as somebody else might have typed it."""
        while True:
            varied = question
            for chance, change in (
                (0.10, self._wrap),
                (0.25, self._swap_synonym),
                (0.20, self._contract),
                (0.15, self._drop_small_word),
                (0.04, self._keep_key_words),
                (0.03, self._drop_any_word),
                (0.15, self._mistype),
                (0.15, self._add_before),
                (0.40, self._change_end),
                (0.12, self._add_after),
                (0.40, self._change_case),
            ):
                if self._dice.random() < chance:
                    varied = change(varied)
            if self._may_show(varied):
                return varied

    def _may_show(self, question: str) -> bool:
        key = normalise(question)
        return bool(key) and key not in self._held_out

    def _wrap(self, text: str) -> str:
        if not text.lower().startswith(_QUESTION_WORDS):
            return text
        inner = _start_small(text).rstrip("?. ")
        if inner.startswith("what is ") and self._dice.random() < 0.5:
            inner = f"what {inner.removeprefix('what is ')} is"
        return self._dice.choice(self._phrasing.wrappers).replace("{q}", inner)

    def _swap_synonym(self, text: str) -> str:
        words = text.split(" ")
        places = [i for i, word in enumerate(words) if word.lower().strip("?.,!") in self._phrasing.synonyms]
        if not places:
            return text
        place = self._dice.choice(places)
        word = words[place]
        bare = word.strip("?.,!")
        words[place] = word.replace(bare, self._dice.choice(self._phrasing.synonyms[bare.lower()]))
        return " ".join(words)

    def _contract(self, text: str) -> str:
        for long, short in self._phrasing.contractions.items():
            text = re.sub(rf"\b{long}\b", short, text, flags=re.IGNORECASE)
        return text[:1].upper() + text[1:]

    def _drop_small_word(self, text: str) -> str:
        words = text.split(" ")
        places = [i for i, word in enumerate(words) if _SMALL_WORDS.fullmatch(word)]
        if not places or len(words) < 3:
            return text
        del words[self._dice.choice(places)]
        return " ".join(words)

    def _keep_key_words(self, text: str) -> str:
        kept = [word for word in text.split(" ") if not _SMALL_WORDS.fullmatch(word) and word.lower() != "what"]
        return " ".join(kept) if len(kept) > 1 else text

    def _drop_any_word(self, text: str) -> str:
        words = text.split(" ")
        if len(words) < 6:
            return text
        del words[self._dice.randrange(len(words))]
        return " ".join(words)

    def _mistype(self, text: str) -> str:
        words = text.split(" ")
        places = [i for i, word in enumerate(words) if len(word) >= _SHORTEST_MISTYPED_WORD and word.isalpha()]
        if not places:
            return text
        place = self._dice.choice(places)
        words[place] = self._mistyped(words[place])
        return " ".join(words)

    def _mistyped(self, word: str) -> str:
        at = self._dice.randrange(1, len(word) - 1)
        match self._dice.randrange(4):
            case 0:
                return word[:at] + word[at + 1] + word[at] + word[at + 2 :]
            case 1:
                return word[:at] + word[at + 1 :]
            case 2:
                return word[:at] + word[at] + word[at:]
            case _:
                return word[:at] + self._dice.choice(_LETTERS) + word[at + 1 :]

    def _add_before(self, text: str) -> str:
        before = self._dice.choice(self._phrasing.before)
        return before + (text if before.endswith((". ", "! ")) else _start_small(text))

    def _add_after(self, text: str) -> str:
        return text + self._dice.choice(self._phrasing.after)

    def _change_end(self, text: str) -> str:
        end = self._dice.choices(["", "?", "??", ".", "!", " ?"], [10, 3, 1, 2, 1, 1])[0]
        return text.rstrip("?.! ") + end

    def _change_case(self, text: str) -> str:
        change = self._dice.choices([str.lower, str.upper, str.title], [17, 1, 1])[0]
        return change(text)


def _start_small(text: str) -> str:
    """The text with a small first letter, unless its first word is a name in capitals."""
    first = text.split(" ")[0]
    return text if first[1:] != first[1:].lower() or first == "I" else text[:1].lower() + text[1:]
