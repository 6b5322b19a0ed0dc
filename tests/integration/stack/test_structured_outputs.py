"""Forms through the whole road: HTTP, router, prefill and decode replicas, and the engine without a server."""

import json
import re
from typing import Any

import httpx
import jsonschema
import openai
import pytest

from kvasir import LLM, SamplingParams, StructuredOutput
from kvasir.demo import DEMO_MODEL_NAME
from kvasir_protocol.errors import InvalidRequest
from tests.integration.stack.conftest import Stack

SCHEMA = {
    "type": "object",
    "properties": {"pages": {"type": "integer", "minimum": 0, "maximum": 99}, "kind": {"enum": ["kv", "other"]}},
    "required": ["pages", "kind"],
    "additionalProperties": False,
}
QUESTION = [{"role": "user", "content": "What is a KV cache?"}]


@pytest.fixture(scope="module")
def llm() -> LLM:
    return LLM(dtype="float32")


def test_chat_answers_in_the_schema_that_openais_client_asks_for(stack: Stack, llm: LLM) -> None:
    answer = stack.client().chat.completions.create(
        model=DEMO_MODEL_NAME,
        messages=QUESTION,  # type: ignore[arg-type]
        temperature=0,
        response_format={"type": "json_schema", "json_schema": {"name": "x", "strict": True, "schema": SCHEMA}},
    )
    text = answer.choices[0].message.content or ""
    jsonschema.validate(json.loads(text), SCHEMA)
    assert answer.choices[0].finish_reason == "stop"
    params = SamplingParams(temperature=0, max_tokens=200, structured_outputs={"json": SCHEMA})  # type: ignore[arg-type]
    assert llm.chat(QUESTION, params, use_tqdm=False)[0].outputs[0].text == text


def complete(stack: Stack, **options: Any) -> httpx.Response:
    body = {"model": DEMO_MODEL_NAME, "prompt": "A KV cache", "max_tokens": 60, "seed": 5} | options
    return httpx.post(f"{stack.url}/v1/completions", json=body, timeout=60)


@pytest.mark.parametrize(
    ("form", "pattern"),
    [
        ({"regex": r"\d{3}-[a-f]{2}"}, r"\d{3}-[a-f]{2}"),
        ({"choice": ["prefill", "decode"]}, "prefill|decode"),
        ({"grammar": 'root ::= "v" [0-9] "." [0-9]'}, r"v\d\.\d"),
    ],
)
def test_every_choice_has_the_form(stack: Stack, form: dict[str, object], pattern: str) -> None:
    choices = complete(stack, n=4, structured_outputs=form).json()["choices"]
    assert [choice["text"] for choice in choices if not re.fullmatch(pattern, choice["text"])] == []
    assert {choice["finish_reason"] for choice in choices} == {"stop"}


def test_stop_string_of_the_caller_cuts_and_is_named(stack: Stack) -> None:
    choice = complete(stack, structured_outputs={"regex": "abcdef"}, stop="d").json()["choices"][0]
    assert (choice["text"], choice["finish_reason"], choice["stop_reason"]) == ("abc", "stop", "d")


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("options", "field"),
    [
        ({"response_format": {"type": "json_schema", "json_schema": {"schema": {"not": {}}}}}, "response_format"),
        ({"structured_outputs": {"regex": "(?=a)b"}}, "structured_outputs"),
        ({"structured_outputs": {"grammar": "start: nobody"}}, "structured_outputs"),
        ({"structured_outputs": {"json": {"type": "integer", "multipleOf": 99999989}}}, "structured_outputs"),
    ],
)
def test_form_that_can_not_be_had_is_a_400_that_names_the_field(
    stack: Stack, options: dict[str, object], field: str, stream: bool
) -> None:
    response = complete(stack, stream=stream, **options)
    error = response.json()["error"]
    assert (response.status_code, error["type"], error["param"]) == (400, "invalid_request_error", field)


def test_streamed_form_is_whole(stack: Stack) -> None:
    text = "".join(stack.stream_chat("Hello", response_format={"type": "json_object"}, max_tokens=200, temperature=0.1))
    assert text.startswith("{")


def test_offline_engine_takes_forms_for_each_prompt(llm: LLM) -> None:
    params = [
        SamplingParams(max_tokens=30, structured_outputs=StructuredOutput(kind="regex", text="[ab]{4}")),
        SamplingParams(max_tokens=5),
        SamplingParams(max_tokens=30, n=3, structured_outputs={"choice": ["x", "yy"]}),  # type: ignore[arg-type]
    ]
    outputs = llm.generate(["one", "two", "three"], params, use_tqdm=False)
    assert re.fullmatch("[ab]{4}", outputs[0].outputs[0].text)
    assert {output.text for output in outputs[2].outputs} <= {"x", "yy"}


def test_offline_engine_refuses_before_anything_runs(llm: LLM) -> None:
    with pytest.raises(InvalidRequest, match="look-around"):
        llm.generate("x", SamplingParams(structured_outputs={"regex": "(?=a)"}), use_tqdm=False)  # type: ignore[arg-type]


def test_client_of_openai_sees_the_refusal(stack: Stack) -> None:
    with pytest.raises(openai.BadRequestError, match="uniqueItems"):
        stack.client().chat.completions.create(
            model=DEMO_MODEL_NAME,
            messages=QUESTION,  # type: ignore[arg-type]
            response_format={"type": "json_schema", "json_schema": {"name": "x", "schema": {"uniqueItems": True}}},
        )
