import pytest
from pydantic import ValidationError

from kvasir_protocol.errors import InvalidRequest
from kvasir_router.openai.bodies import UNSUPPORTED, ChatBody, ChatMessage, CompletionBody


def test_unknown_fields_are_ignored() -> None:
    CompletionBody.model_validate({"prompt": "x", "user": "me", "metadata": {"a": 1}}).refuse_unsupported()


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("suffix", "end"),
        ("use_beam_search", True),
        ("tools", [{"type": "function"}]),
        ("tool_choice", "auto"),
    ],
)
def test_options_that_would_change_the_answer_are_refused_by_name(name: str, value: object) -> None:
    body = CompletionBody.model_validate({"prompt": "x", name: value})
    with pytest.raises(InvalidRequest, match=f"{name} is not supported yet") as caught:
        body.refuse_unsupported()
    assert caught.value.field == name


def test_options_with_values_that_ask_for_nothing_pass() -> None:
    for name, neutral_values in UNSUPPORTED.items():
        for value in (None, *neutral_values):
            CompletionBody.model_validate({"prompt": "x", name: value}).refuse_unsupported()


@pytest.mark.parametrize(("name", "value"), [("best_of", 2), ("echo", True), ("prompt_logprobs", 1)])
def test_options_of_completions_are_refused_in_a_chat(name: str, value: object) -> None:
    body = ChatBody.model_validate({"messages": [{"role": "user"}], name: value})
    with pytest.raises(InvalidRequest, match=f"{name} is not supported yet"):
        body.refuse_unsupported()


@pytest.mark.parametrize("prompt", ["text", ["a", "b"], [1, 2], [[1], [2, 3]]])
def test_prompt_has_four_forms(prompt: object) -> None:
    assert CompletionBody.model_validate({"prompt": prompt}).prompt == prompt


@pytest.mark.parametrize(
    "body",
    [
        {"prompt": None},
        {"prompt": [1, "a"]},
        {"prompt": [True]},
        {"prompt": [1.5]},
        {"prompt": "\ud800"},
        {"prompt": "x", "max_tokens": "5"},
        {"prompt": "x", "stream": "yes"},
        {"prompt": "x", "stop": [1]},
        {"prompt": "x", "stop": "\udfff"},
        {"prompt": "x", "seed": 1.5},
        {"prompt": "x", "stream_options": []},
    ],
)
def test_wrong_types_are_refused(body: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        CompletionBody.model_validate(body)


def test_text_parts_are_joined_for_the_template() -> None:
    message = ChatMessage.model_validate(
        {"role": "user", "name": "Ann", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]}
    )
    assert message.for_template() == {"role": "user", "name": "Ann", "content": "a\nb"}


@pytest.mark.parametrize("part", [{"type": "image_url", "image_url": {"url": "x"}}, {"type": "text"}, "text"])
def test_other_parts_are_refused(part: object) -> None:
    with pytest.raises(ValidationError):
        ChatBody.model_validate({"messages": [{"role": "user", "content": [part]}]})
