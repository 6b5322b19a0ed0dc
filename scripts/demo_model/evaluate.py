"""Measure what the demo model has learnt: greedy answers to taught and to held-out questions.

Run from the root of the repository: python -m scripts.demo_model.evaluate [CHECKPOINT] [--show-misses]
"""

import argparse
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from scripts.demo_model.questions import Corpus, Topic, load_corpus, normalise

_REPOSITORY = Path(__file__).parents[2]
_BATCH_SIZE = 48
_MAX_NEW_TOKENS = 128
_RIGHT_FROM_SHARED_WORDS = 0.8


@dataclass(frozen=True, slots=True)
class Case:
    """A chat that ends with a question, and the answer that was taught."""

    messages: tuple[dict[str, str], ...]
    taught: str


@dataclass(frozen=True, slots=True)
class Result:
    case: Case
    answer: str
    ended: bool

    @property
    def is_exact(self) -> bool:
        return normalise(self.answer) == normalise(self.case.taught)

    @property
    def is_right(self) -> bool:
        """The taught answer, or one that shares most words with it and adds few of its own."""
        given, taught = normalise(self.answer).split(), normalise(self.case.taught).split()
        num_shared = (Counter(given) & Counter(taught)).total()
        return num_shared >= _RIGHT_FROM_SHARED_WORDS * max(len(given), len(taught))


def cases_of(corpus: Corpus) -> dict[str, list[Case]]:
    """All that is asked, by the name under which it is reported."""
    topics, off_topic = corpus.topics, corpus.off_topic
    return {
        "training phrasings": [_case(q, topic.answer) for topic in topics for q in topic.questions],
        "held-out phrasings": [_case(q, topic.answer) for topic in topics for q in topic.held_out],
        "held-out, with a system prompt": [
            _case(q, topic.answer, system_prompt="You are a helpful assistant.")
            for topic in topics
            for q in topic.held_out
        ],
        "held-out, as a second turn": [
            _case(q, topic.answer, before=topics[i - 1]) for i, topic in enumerate(topics) for q in topic.held_out
        ],
        "blind phrasings": [
            _case(corpus.blind.by_topic[topic.name], topic.answer)
            for topic in topics
            if topic.name in corpus.blind.by_topic
        ],
        "off-topic, training": [_case(q, off_topic.answer) for q in off_topic.questions],
        "off-topic, held-out": [_case(q, off_topic.answer) for q in off_topic.held_out],
        "off-topic, blind": [_case(q, off_topic.answer) for q in corpus.blind.off_topic],
        "follow-ups, held-out": _follow_up_cases(corpus),
    }


def _case(question: str, taught: str, *, system_prompt: str | None = None, before: Topic | None = None) -> Case:
    messages = [{"role": "system", "content": system_prompt}] if system_prompt else []
    if before:
        messages.append({"role": "user", "content": before.questions[0]})
        messages.append({"role": "assistant", "content": before.answer})
    return Case((*messages, {"role": "user", "content": question}), taught)


def _follow_up_cases(corpus: Corpus) -> list[Case]:
    topics = {topic.name: topic for topic in corpus.topics}
    return [
        _case(question, answer, before=topics[topic_name])
        for (topic_name, kind_name), answer in corpus.follow_ups.answers.items()
        for question in corpus.follow_ups.kinds[kind_name].held_out
    ]


@torch.inference_mode()
def answer_all(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, cases: list[Case]) -> list[Result]:
    """Greedy answers, in the order of the cases."""
    results = []
    for start in range(0, len(cases), _BATCH_SIZE):
        batch = cases[start : start + _BATCH_SIZE]
        prompts = [
            tokenizer.apply_chat_template(list(case.messages), add_generation_prompt=True, tokenize=False)
            for case in batch
        ]
        inputs = tokenizer(prompts, return_tensors="pt", padding=True, padding_side="left", return_token_type_ids=False)
        # Temperature and top_p of generation_config.json are for sampling; unset, they raise no warning.
        greedy = {"do_sample": False, "temperature": None, "top_p": None, "max_new_tokens": _MAX_NEW_TOKENS}
        output = model.generate(**inputs, **greedy)  # type: ignore[operator]
        for case, ids in zip(batch, output[:, inputs["input_ids"].shape[1] :].tolist(), strict=True):
            answer = str(tokenizer.decode(ids, skip_special_tokens=True))
            results.append(Result(case, answer, ended=tokenizer.eos_token_id in ids))
    return results


def report(name: str, results: list[Result], *, show_misses: bool) -> None:
    """Print one line of shares and, if wanted, each miss with the answer given and the one taught."""
    total = len(results)
    right, exact, ended = (sum(getattr(r, key) for r in results) for key in ("is_right", "is_exact", "ended"))
    shares = f"right {right / total:6.1%}  word for word {exact / total:6.1%}  ended {ended / total:6.1%}"
    print(f"{name:32} {total:5}  {shares}", flush=True)
    for result in results if show_misses else ():
        if not (result.is_right and result.ended):
            question = " | ".join(m["content"] for m in result.case.messages if m["role"] == "user")
            print(f"    asked   {question}\n    answer  {result.answer}\n    taught  {result.case.taught}\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path, nargs="?", default=_REPOSITORY / "kvasir" / "demo_model")
    parser.add_argument("--show-misses", action="store_true", help="print every wrong or unended answer")
    parser.add_argument("--only", help="evaluate only the groups whose name contains this")
    parser.add_argument("--threads", type=int, default=2, help="CPU threads (default %(default)s)")
    arguments = parser.parse_args()

    torch.set_num_threads(arguments.threads)
    model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(arguments.checkpoint, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(arguments.checkpoint)
    for name, cases in cases_of(load_corpus()).items():
        if arguments.only is None or arguments.only in name:
            report(name, answer_all(model, tokenizer, cases), show_misses=arguments.show_misses)


if __name__ == "__main__":
    main()
