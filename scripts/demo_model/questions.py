"""The corpus as values: topics with their phrasings, follow-ups, off-topic questions and ways to vary a question."""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

CORPUS_DIR = Path(__file__).parent / "corpus"


@dataclass(frozen=True, slots=True)
class Topic:
    """One thing the model is taught: how it may be asked for, and its answer."""

    name: str
    questions: tuple[str, ...]
    held_out: tuple[str, ...]
    answer: str
    terms: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class FollowUpKind:
    """One way to ask on, such as "why?", that means nothing without the turn before it."""

    questions: tuple[str, ...]
    held_out: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class FollowUps:
    """Second turns. answers: (topic name, kind name) -> answer; every other pair gets `unknown`."""

    kinds: dict[str, FollowUpKind]
    answers: dict[tuple[str, str], str]
    unknown: str
    no_context: str

    def answer(self, topic_name: str | None, kind_name: str) -> str:
        """The taught answer to this kind of follow-up after this topic; None means an off-topic question."""
        return self.answers.get((topic_name or "", kind_name), self.unknown)


@dataclass(frozen=True, slots=True)
class OffTopic:
    """Questions outside of what is taught, and the one answer to all of them."""

    questions: tuple[str, ...]
    held_out: tuple[str, ...]
    templates: tuple[str, ...]
    fillers: dict[str, tuple[str, ...]]
    answer: str


@dataclass(frozen=True, slots=True)
class Phrasing:
    """How questions are varied in training; the file corpus/phrasing.yaml says what each list is."""

    definition_templates: tuple[str, ...]
    before: tuple[str, ...]
    after: tuple[str, ...]
    wrappers: tuple[str, ...]
    contractions: dict[str, str]
    synonyms: dict[str, tuple[str, ...]]
    system_prompts: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Blind:
    """Questions for measuring only. by_topic: topic name -> question."""

    by_topic: dict[str, str]
    off_topic: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Corpus:
    """All that the model is taught, and what it is measured by."""

    topics: tuple[Topic, ...]
    follow_ups: FollowUps
    off_topic: OffTopic
    phrasing: Phrasing
    blind: Blind

    def held_out_questions(self) -> frozenset[str]:
        """Every phrasing, normalised, that training must never show. Follow-ups are told apart by their context."""
        texts = [text for topic in self.topics for text in topic.held_out]
        texts += [*self.off_topic.held_out, *self.blind.by_topic.values(), *self.blind.off_topic]
        texts += [text for kind in self.follow_ups.kinds.values() for text in kind.held_out]
        return frozenset(map(normalise, texts))


def normalise(text: str) -> str:
    """The text for comparing: in small letters, without punctuation, "what's" written out as "what is"."""
    spelled_out = re.sub(r"'s\b", " is", text.lower())
    return " ".join(re.sub(r"[\W_]+", " ", spelled_out).split())


def load_corpus(folder: Path = CORPUS_DIR) -> Corpus:
    """Read every file of the corpus. Raises ValueError when a phrasing is taught twice or both taught and held out."""
    by_name = {path.stem: yaml.safe_load(path.read_text("utf-8")) for path in sorted(folder.glob("*.yaml"))}
    follow_ups, off_topic, phrasing, blind = (
        by_name.pop(name) for name in ("follow_ups", "off_topic", "phrasing", "blind")
    )
    topics = tuple(
        Topic(
            name=entry["topic"],
            questions=tuple(entry["questions"]),
            held_out=tuple(entry["held_out"]),
            answer=entry["answer"],
            terms=tuple(entry.get("terms", ())),
        )
        for entries in by_name.values()
        for entry in entries
    )
    taught = [text for topic in topics for text in topic.questions + topic.held_out]
    _refuse_duplicates(taught + list(blind["topics"].values()))
    _refuse_duplicates(off_topic["questions"] + off_topic["held_out"] + blind["off_topic"])
    return Corpus(
        topics,
        _follow_ups(follow_ups),
        _off_topic(off_topic),
        _phrasing(phrasing),
        Blind(blind["topics"], tuple(blind["off_topic"])),
    )


def _follow_ups(entry: dict[str, Any]) -> FollowUps:
    kinds = {
        name: FollowUpKind(tuple(kind["questions"]), tuple(kind["held_out"])) for name, kind in entry["kinds"].items()
    }
    answers = {(chat["after"], chat["kind"]): chat["answer"] for chat in entry["chats"]}
    return FollowUps(kinds, answers, entry["unknown"], entry["no_context"])


def _off_topic(entry: dict[str, Any]) -> OffTopic:
    return OffTopic(
        questions=tuple(entry["questions"]),
        held_out=tuple(entry["held_out"]),
        templates=tuple(entry["templates"]),
        fillers={name: tuple(words) for name, words in entry["fillers"].items()},
        answer=entry["answer"],
    )


def _phrasing(entry: dict[str, Any]) -> Phrasing:
    return Phrasing(
        definition_templates=tuple(entry["definition_templates"]),
        before=tuple(entry["before"]),
        after=tuple(entry["after"]),
        wrappers=tuple(entry["wrappers"]),
        contractions=entry["contractions"],
        synonyms={word: tuple(others) for word, others in entry["synonyms"].items()},
        system_prompts=tuple(entry["system_prompts"]),
    )


def _refuse_duplicates(texts: list[str]) -> None:
    seen: set[str] = set()
    for text in texts:
        key = normalise(text)
        if key in seen:
            raise ValueError(f"the phrasing {text!r} stands in the corpus twice; remove one of them")
        seen.add(key)
