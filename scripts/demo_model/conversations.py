"""Training conversations: drawn at random from the corpus, and encoded with the loss weight of every token."""

from collections.abc import Iterator
from dataclasses import dataclass
from random import Random

from scripts.demo_model.augmentation import Phraser
from scripts.demo_model.chat_tokenizer import ChatTokenizer
from scripts.demo_model.questions import Corpus, Topic

# Pairs of a number of turns and its weight. The long ones teach positions far from the start.
_NUM_TURNS = ((1, 70), (2, 17), (3, 6), (4, 3), (6, 2), (10, 1), (16, 1))
_QUESTION_WEIGHT = 0.1  # of a token outside the answers, against 1.0 inside
_TEXT_SHARE = 0.03  # of examples that are a bare answer
_NOISY_SHARE = 0.12  # of conversations whose questions are cut into unusual tokens
# To choose the answer is harder than to go on with it, so most examples end soon after the choice.
_CUT_SHARE = 0.6
_CUT_AFTER_TOKENS = (4, 24)
# Batches come in these lengths only: a matrix shape not seen before costs the CPU library a compilation.
_LENGTHS = (32, 48, 64, 80, 96, 128, 192, 256, 384, 512, 1024, 2048)


@dataclass(frozen=True, slots=True)
class Turn:
    question: str
    answer: str


@dataclass(frozen=True, slots=True)
class Conversation:
    system_prompt: str | None
    turns: tuple[Turn, ...]


@dataclass(frozen=True, slots=True)
class Example:
    """Token ids with, for each, the weight of the loss of predicting it."""

    ids: list[int]
    weights: list[float]


@dataclass(frozen=True, slots=True)
class Batch:
    """Examples to be padded to one length."""

    examples: tuple[Example, ...]
    length: int


class ConversationSource:
    """An endless, seeded source of training conversations."""

    def __init__(self, corpus: Corpus, dice: Random) -> None:
        self._corpus = corpus
        self._dice = dice
        self._phraser = Phraser(corpus.phrasing, corpus.held_out_questions(), dice)
        chat_names = {topic_name for topic_name, _ in corpus.follow_ups.answers}
        self._chat_topics = [topic for topic in corpus.topics if topic.name in chat_names]

    def draw(self) -> Conversation:
        """One conversation, of questions that mostly have nothing to do with each other."""
        num_turns = self._dice.choices(*zip(*_NUM_TURNS, strict=True))[0]
        turns: list[Turn] = []
        while len(turns) < num_turns:
            turns += self._exchange(num_turns - len(turns), is_first=not turns)
        system_prompt = self._dice.choice(self._corpus.phrasing.system_prompts) if self._dice.random() < 0.4 else None
        return Conversation(system_prompt, tuple(turns))

    def draw_text(self) -> str:
        """A bare answer, which teaches the model to go on with a text outside of a chat."""
        return self._dice.choice(self._corpus.topics).answer

    def _exchange(self, max_turns: int, *, is_first: bool) -> list[Turn]:
        """A question and, where there is room, now and then follow-ups to it."""
        if is_first and self._dice.random() < 0.015:
            kind = self._corpus.follow_ups.kinds[self._dice.choice(list(self._corpus.follow_ups.kinds))]
            question = self._phraser.vary(self._dice.choice(kind.questions))
            return [Turn(question, self._corpus.follow_ups.no_context)]
        if self._dice.random() < 0.2:
            off_topic = self._corpus.off_topic
            turns = [Turn(self._phraser.ask_off_topic(off_topic), off_topic.answer)]
            topic = None
        else:
            topic = self._choose_topic(wants_follow_up=max_turns > 1)
            turns = [Turn(self._phraser.ask(topic), topic.answer)]
        follow_up_chance = 0.1 if topic is None else 0.4
        while len(turns) < min(max_turns, 3) and self._dice.random() < follow_up_chance:
            turns.append(self._follow_up(topic))
        return turns

    def _choose_topic(self, *, wants_follow_up: bool) -> Topic:
        topics = self._chat_topics if wants_follow_up and self._dice.random() < 0.4 else self._corpus.topics
        return self._dice.choice(topics)

    def _follow_up(self, topic: Topic | None) -> Turn:
        follow_ups = self._corpus.follow_ups
        topic_name = topic.name if topic else None
        answered = [kind_name for name, kind_name in follow_ups.answers if name == topic_name]
        kind_name = self._dice.choice(answered if answered and self._dice.random() < 0.75 else list(follow_ups.kinds))
        question = self._phraser.vary(self._dice.choice(follow_ups.kinds[kind_name].questions))
        return Turn(question, follow_ups.answer(topic_name, kind_name))


def encode(
    conversation: Conversation, tokenizer: ChatTokenizer, max_last_answer: int | None, *, noisy: bool
) -> Example:
    """The conversation as ids.

    max_last_answer: keep only so many tokens of the last answer, without its end.
    noisy: cut the questions into more and other tokens than usual (BPE dropout).
    """
    ids: list[int] = []
    weights: list[float] = []

    def add(role: str, content_ids: list[int], content_weight: float) -> None:
        header, footer = tokenizer.header(role), tokenizer.footer
        ids.extend(header + content_ids + footer)
        # The end token right after the content is part of the turn; the line break after it is not.
        weights.extend([0.0] * len(header) + [content_weight] * (len(content_ids) + 1) + [0.0] * (len(footer) - 1))

    if conversation.system_prompt is not None:
        add("system", tokenizer.encode(conversation.system_prompt), 0.0)
    for turn in conversation.turns:
        add("user", tokenizer.encode(turn.question, noisy=noisy), _QUESTION_WEIGHT)
        add("assistant", tokenizer.encode(turn.answer), 1.0)
    num_surplus = len(tokenizer.encode(conversation.turns[-1].answer)) - (max_last_answer or 0)
    if max_last_answer is not None and num_surplus > 0:
        num_kept = len(ids) - len(tokenizer.footer) - num_surplus
        ids, weights = ids[:num_kept], weights[:num_kept]
    return Example(ids, weights)


def encode_text(text: str, tokenizer: ChatTokenizer) -> Example:
    """A text outside of any chat, ended like an answer."""
    ids = tokenizer.encode(text) + tokenizer.footer[:1]
    return Example(ids, [1.0] * len(ids))


def batches(source: ConversationSource, tokenizer: ChatTokenizer, budget_tokens: int, dice: Random) -> Iterator[Batch]:
    """Endless full batches of examples of similar length, budget_tokens each with their padding."""
    waiting: dict[int, list[Example]] = {length: [] for length in _LENGTHS}
    while True:
        if dice.random() < _TEXT_SHARE:
            example = encode_text(source.draw_text(), tokenizer)
        else:
            max_last_answer = dice.randint(*_CUT_AFTER_TOKENS) if dice.random() < _CUT_SHARE else None
            example = encode(source.draw(), tokenizer, max_last_answer, noisy=dice.random() < _NOISY_SHARE)
        length = next(length for length in _LENGTHS if length >= len(example.ids))
        waiting[length].append(example)
        if (len(waiting[length]) + 1) * length > budget_tokens:
            yield Batch(tuple(waiting[length]), length)
            waiting[length] = []
