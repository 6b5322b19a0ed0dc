"""Structured and free answers in one batch: each keeps to its form, and none to another's."""

import dataclasses
import json
import random
import re
from pathlib import Path

import jsonschema
import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from kvasir_protocol.events import TokenOutput
from kvasir_protocol.ids import RequestId
from kvasir_protocol.request import GenerationRequest, SamplingParams
from kvasir_protocol.structured import StructuredOutput, structured_output
from kvasir_workers.engine import Engine
from kvasir_workers.grammar.state import Grammar
from kvasir_workers.grammar.token_table import TokenSource, TokenTable
from tests.checkpoints import make_checkpoint
from tests.forms import CHOICES, GRAMMARS, REGEXES, SCHEMAS
from tests.integration.engine.conftest import DEMO_MODEL, Model
from tests.unit.workers.grammar.walks import compile_here

VOCAB_SIZE = 272
MAX_TOKENS = 80


def write_byte_level_tokenizer(directory: Path) -> None:
    """Three special tokens, 256 bytes and some merges; the model has a few logits more than that."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    merges = [("t", "r"), ("u", "e"), ("tr", "ue"), ('"', ":"), ("{", '"'), ('"', ","), ('"', "}")]
    words = ["<pad>", "<bos>", "<eos>", *alphabet, *("".join(pair) for pair in merges)]
    tokenizer = Tokenizer(models.BPE({word: i for i, word in enumerate(words)}, merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(["<pad>", "<bos>", "<eos>"])
    tokenizer.save(str(directory / "tokenizer.json"))


class House:
    """A model, its tokens, and every form compiled for it."""

    def __init__(self, directory: Path, vocab_size: int, eos_token_ids: frozenset[int]) -> None:
        self.model = Model(directory)
        source = TokenSource(directory=directory, vocab_size=vocab_size, eos_token_ids=eos_token_ids)
        self.table = TokenTable(source)
        self.eos_token_ids = eos_token_ids
        self._grammars: dict[StructuredOutput, Grammar] = {}

    def add(self, engine: Engine, request: GenerationRequest) -> None:
        form = request.sampling.structured_outputs
        if form is not None and form not in self._grammars:
            self._grammars[form] = compile_here(self.table, form.kind, form.text)
        engine.add(request, grammar=self._grammars[form] if form is not None else None)

    def run(self, engine: Engine, requests: list[GenerationRequest]) -> dict[str, list[TokenOutput]]:
        outputs: dict[str, list[TokenOutput]] = {request.request_id: [] for request in requests}
        for request in requests:
            self.add(engine, request)
        while engine.has_work:
            for output in engine.step():
                outputs[output.request_id].append(output)
            engine.audit()
        assert engine.num_used_pages == 0
        return outputs

    def text(self, tokens: list[int]) -> str:
        return self.table.bytes_of([token for token in tokens if token not in self.eos_token_ids]).decode()


@pytest.fixture(scope="module", params=["random", "demo"])
def house(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> House:
    if request.param == "demo":
        return House(DEMO_MODEL, 2048, frozenset({0, 2}))
    directory = make_checkpoint(tmp_path_factory.mktemp("bytes"), "LlamaForCausalLM", vocab_size=VOCAB_SIZE)
    write_byte_level_tokenizer(directory)
    return House(directory, VOCAB_SIZE, frozenset({2}))


FORMS: list[dict[str, object]] = [
    *({"json": schema} for schema in SCHEMAS.values()),
    *({"regex": pattern} for pattern in REGEXES),
    *({"choice": list(choices)} for choices in CHOICES),
    *({"grammar": grammar} for grammar, _ in GRAMMARS.values()),
    {"json_object": True},
]


def is_of_form(form: dict[str, object], text: str) -> bool:
    match form:
        case {"json": schema}:
            return bool(jsonschema.Draft202012Validator(schema).is_valid(json.loads(text)))
        case {"regex": str(pattern)}:
            return re.fullmatch(pattern, text) is not None
        case {"choice": list(choices)}:
            return text in choices
        case {"grammar": grammar}:
            return re.fullmatch(next(p for g, p in GRAMMARS.values() if g == grammar), text) is not None
    return isinstance(json.loads(text), dict)


def request_of(index: int, form: dict[str, object] | None, **sampling: object) -> GenerationRequest:
    draw = random.Random(index)
    options: dict[str, object] = {"temperature": 1.0, "max_tokens": MAX_TOKENS, "seed": index, **sampling}
    if form is not None:
        options["structured_outputs"] = structured_output(form)
    return GenerationRequest(
        request_id=RequestId(f"r{index}"),
        prompt_token_ids=tuple(draw.choices(range(3, 256), k=draw.randint(1, 20))),
        sampling=SamplingParams(**options),  # type: ignore[arg-type]
        choice_index=index % 2,
    )


def tokens_of(outputs: list[TokenOutput]) -> list[int]:
    return [token for output in outputs for token in output.token_ids]


def test_all_answers_that_end_by_themselves_have_their_form(house: House) -> None:
    """Every third request is free, and every form is asked for greedily and by chance."""
    requests, forms = [], {}
    for index, form in enumerate([form for form in FORMS for _ in range(2)]):
        more = {"temperature": 0} if index % 8 == 0 else {"top_k": 40} if index % 8 == 1 else {}
        requests.append(request_of(index, form, **more))
        forms[f"r{index}"] = form
        if index % 3 == 0:
            requests.append(request_of(1000 + index, None, max_tokens=10))
    outputs = house.run(house.model.engine(num_pages=2048), requests)
    ended = [name for name in forms if outputs[name][-1].finish_reason == "stop"]
    assert {outputs[name][-1].finish_reason for name in forms} <= {"stop", "length"}
    wrong = {name: house.text(tokens_of(outputs[name])) for name in ended}
    assert {name: text for name, text in wrong.items() if not is_of_form(forms[name], text)} == {}
    assert len(ended) > len(forms) // 2


def mixed_requests() -> list[GenerationRequest]:
    forms: list[dict[str, object] | None] = [*FORMS[::4], *([None] * 8)]
    random.Random(1).shuffle(forms)
    return [request_of(index, form, max_tokens=40) for index, form in enumerate(forms)]


@pytest.fixture(scope="module")
def undisturbed(house: House) -> dict[str, list[int]]:
    """What each request gets alone."""
    engine = house.model.engine(caches=False)
    return {
        request.request_id: tokens_of(house.run(engine, [request])[request.request_id]) for request in mixed_requests()
    }


@pytest.mark.parametrize(
    "sizes",
    [{}, {"num_pages": 30, "max_num_seqs": 16}, {"budget": 16, "max_num_seqs": 8}, {"num_pages": 40, "caches": False}],
    ids=["one batch", "preempted", "in chunks", "preempted without a cache"],
)
def test_tokens_are_the_same_however_a_batch_is_run(
    house: House, undisturbed: dict[str, list[int]], sizes: dict[str, int]
) -> None:
    engine = house.model.engine(**sizes)  # type: ignore[arg-type]
    outputs = house.run(engine, mixed_requests())
    assert {name: tokens_of(parts) for name, parts in outputs.items()} == undisturbed
    assert (engine.counters().num_preemptions > 0) == ("num_pages" in sizes)


def test_replay_after_any_number_of_tokens_goes_on_with_the_same_answer(
    house: House, undisturbed: dict[str, list[int]]
) -> None:
    draw = random.Random(2)
    replays = []
    for request in mixed_requests():
        tokens = undisturbed[request.request_id]
        if len(tokens) > 1:
            emitted = tuple(tokens[: draw.randint(1, len(tokens) - 1)])
            replays.append(dataclasses.replace(request, emitted_token_ids=emitted))
    outputs = house.run(house.model.engine(), replays)
    for replay in replays:
        name = replay.request_id
        assert [*replay.emitted_token_ids, *tokens_of(outputs[name])] == undisturbed[name]


def end_of(outputs: list[TokenOutput]) -> tuple[str | None, int | None]:
    return outputs[-1].finish_reason, outputs[-1].stop_token


def test_form_that_is_complete_ends_the_answer_whatever_min_tokens_says(house: House) -> None:
    request = request_of(1, {"regex": "ab"}, min_tokens=20)
    outputs = house.run(house.model.engine(), [request])["r1"]
    assert (house.text(tokens_of(outputs)), end_of(outputs)) == ("ab", ("stop", None))


def test_min_tokens_holds_an_end_back_that_the_form_would_allow(house: House) -> None:
    request = request_of(1, {"regex": "a{0,40}"}, min_tokens=15, max_tokens=60)
    outputs = house.run(house.model.engine(), [request])["r1"]
    assert len(tokens_of(outputs)) >= 15


def test_stop_token_of_the_caller_cuts_the_answer_where_it_comes(house: House) -> None:
    quote = next(i for i in range(3, 259) if house.table.bytes_of([i]) == b"b")
    request = request_of(1, {"regex": "(ab){9}"}, stop_token_ids=(quote,))
    outputs = house.run(house.model.engine(), [request])["r1"]
    assert end_of(outputs)[0] == "stop"


def test_form_that_fails_in_the_middle_ends_in_an_error_and_harms_nobody(house: House) -> None:
    engine = house.model.engine()
    free = request_of(2, None, max_tokens=12, ignore_eos=True)
    house.add(engine, request_of(1, {"regex": "a{20,}"}))
    house.add(engine, free)
    outputs: list[TokenOutput] = []
    while not outputs:
        outputs += engine.step()
    sequence = engine._scheduler.find(RequestId("r1"))
    assert sequence is not None
    assert sequence.grammar is not None
    sequence.grammar.accept([5])
    while engine.has_work:
        outputs += engine.step()
        engine.audit()
    assert [output.finish_reason for output in outputs if output.request_id == "r1"] == [None, "error"]
    assert engine.counters().finished_error == 1
    alone = tokens_of(house.run(house.model.engine(), [free])["r2"])
    assert tokens_of([output for output in outputs if output.request_id == "r2"]) == alone


def test_penalties_and_bias_of_probability_do_not_lead_out_of_the_form(house: House) -> None:
    penalties = {"repetition_penalty": 3.0, "presence_penalty": 2.0, "frequency_penalty": 2.0, "top_p": 0.3}
    request = request_of(3, {"regex": "a{30}"}, **penalties)
    assert house.text(tokens_of(house.run(house.model.engine(), [request])["r3"])) == "a" * 30


def tokens_of_text(house: House, *texts: bytes) -> tuple[int, ...]:
    return tuple(token for token in range(3, 259) if house.table.bytes_of([token]) in texts)


def test_form_and_fields_that_leave_no_token_end_in_an_error_that_names_them_and_harm_nobody(house: House) -> None:
    """The contradiction may show itself at the first token, or later, greedily as by chance."""
    x, a, c = (tokens_of_text(house, text) for text in (b"x", b"a", b"c"))
    cases: list[tuple[str, dict[str, object], str, int]] = [
        ("[ac]{2}[bd]", {"allowed_token_ids": x}, "allowed_token_ids", 0),
        ("[ac]{2}[bd]", {"allowed_token_ids": a, "temperature": 0}, "allowed_token_ids", 2),
        ("[ac]{2}[bd]", {"allowed_token_ids": a, "logit_bias": {a[0]: 100}}, "allowed_token_ids", 2),
        ("[ac]", {"bad_word_token_ids": ((*a,), (*c,))}, "bad_words", 0),
        (
            "[ac]{3}([bd]|)",
            {"allowed_token_ids": (*a, max(house.eos_token_ids)), "min_tokens": 9, "top_k": 5},
            "allowed_token_ids and min_tokens",
            3,
        ),
    ]
    clashing = [request_of(i, {"regex": form}, **more) for i, (form, more, _, _) in enumerate(cases)]
    free = request_of(99, None, max_tokens=12, ignore_eos=True)
    formed = request_of(98, {"regex": "[xyz]{9}"})
    engine = house.model.engine()
    outputs = house.run(engine, [*clashing[:3], free, formed, *clashing[3:]])
    for request, (_, _, named, num_tokens) in zip(clashing, cases, strict=True):
        last = outputs[request.request_id][-1]
        assert (last.finish_reason, last.error_field) == ("error", "structured_outputs")
        assert f"structured_outputs and {named}" in last.error
        assert len(tokens_of(outputs[request.request_id])) == num_tokens
    assert engine.counters().finished_error == len(cases)
    for other in (free, formed):
        alone = house.run(house.model.engine(), [other])[other.request_id]
        assert tokens_of(outputs[other.request_id]) == tokens_of(alone)
